"""Runs SQL: sql.py duckdb|clickhouse [TIMES]. Standard input is a JSON list of statements. Prints the rows of the last one as JSON; times
are milliseconds since 1970. With TIMES, runs the last one so often, and prints how many seconds each run took."""

import datetime
import decimal
import json
import sys
import time


def duckdb():
    import duckdb

    connection = duckdb.connect()

    def run(statement):
        result = connection.execute(statement)
        names = [column[0] for column in result.description]
        return [dict(zip(names, row)) for row in result.fetchall()]

    return run


def clickhouse():
    from chdb.session import Session

    session = Session()

    def run(statement):
        result = session.query(statement, "ArrowTable")
        return result.to_pylist() if result is not None else []

    return run


def plain(value):
    if isinstance(value, datetime.datetime):
        value = value if value.tzinfo else value.replace(tzinfo=datetime.timezone.utc)
        return round(value.timestamp() * 1000)
    return int(value) if isinstance(value, decimal.Decimal) else str(value)


def timed(statement):
    start = time.monotonic()
    run(statement)
    return time.monotonic() - start


run = {"duckdb": duckdb, "clickhouse": clickhouse}[sys.argv[1]]()
*first, last = json.load(sys.stdin)
for statement in first:
    run(statement)
result = [timed(last) for _ in range(int(sys.argv[2]))] if len(sys.argv) > 2 else run(last)
print(json.dumps(result, default=plain))
