"""Runs SQL: sql.py duckdb|clickhouse. Standard input is a JSON list of statements. Prints the rows of the last one as JSON; times are
milliseconds since 1970."""

import datetime
import decimal
import json
import sys


def duckdb(statements):
    import duckdb

    connection = duckdb.connect()
    for statement in statements:
        result = connection.execute(statement)
    names = [column[0] for column in result.description]
    return [dict(zip(names, row)) for row in result.fetchall()]


def clickhouse(statements):
    from chdb.session import Session

    session = Session()
    for statement in statements:
        result = session.query(statement, "ArrowTable")
    return result.to_pylist()


def plain(value):
    if isinstance(value, datetime.datetime):
        value = value if value.tzinfo else value.replace(tzinfo=datetime.timezone.utc)
        return round(value.timestamp() * 1000)
    return int(value) if isinstance(value, decimal.Decimal) else str(value)


print(json.dumps({"duckdb": duckdb, "clickhouse": clickhouse}[sys.argv[1]](json.load(sys.stdin)), default=plain))
