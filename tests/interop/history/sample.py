"""Prints flows as the collector does, of a cluster that is made up: for sizes of files. Usage: sample.py REPORTS [SEED]

3,000 pods of 300 workloads in 40 namespaces on 100 nodes in three zones. 3,000 pairs of workloads call each other, the most frequent one
500 times as often as the median (Zipf). Of the calls, 60 % are to Services, with the pod that answered, 25 % to pods, 15 % to 500 names
outside of the cluster with four addresses each. 85 % are TCP; 3 % of these failed. UDP is DNS. Each report has both directions, if the
call did not fail. Reports come at 2,000 per second. Client ports, ConnIds, addresses of pods, durations, handshake times and payloads
(log-normal, median 1.5 KB out and 6 KB in) are random.
"""

import bisect
import json
import random
import sys

reports, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
rng = random.Random(seed)
START = 1_795_430_000_000
LETTERS = "bcdfghjklmnpqrstvwxz2456789"


def word(length):
    return "".join(rng.choices(LETTERS, k=length))


namespaces = [f"team-{word(5)}" for _ in range(40)]
workloads = []
for number in range(300):
    namespace, name = rng.choice(namespaces), f"{rng.choice(['api', 'cart', 'web', 'worker', 'ledger', 'search'])}-{word(4)}"
    template, service = word(9), f"10.96.{number // 250}.{number % 250 + 1}"
    pods = []
    for _ in range(10):
        node = rng.randrange(100)
        pod = {
            "Addr": f"10.{244 + node // 250}.{node % 250}.{rng.randrange(2, 250)}",
            "K8S_Name": f"{name}-{template}-{word(5)}",
            "K8S_Namespace": namespace,
            "K8S_Type": "Pod",
            "K8S_OwnerName": name,
            "K8S_OwnerType": "Deployment",
            "K8S_HostName": f"ip-10-0-{node // 250}-{node % 250}",
            "K8S_Zone": f"eu-{'abc'[node % 3]}",
            "K8S_HostIP": f"10.0.{node // 250}.{node % 250}",
            "Taps": [f"ClusterPodTap who-calls-whom-{node % 4}"],
        }
        pods.append(pod)
    workloads.append((namespace, name, service, rng.choice([80, 443, 8080, 5432, 6379, 9092]), pods))
outside = [(f"{word(6)}.example.com", [f"198.{rng.randrange(18, 20)}.{rng.randrange(256)}.{rng.randrange(1, 255)}" for _ in range(4)]) for _ in range(500)]
pairs = [(rng.randrange(300), rng.randrange(300), rng.random()) for _ in range(3000)]
weights, total = [], 0.0
for rank in range(len(pairs)):
    total += 1 / (rank + 3)
    weights.append(total)


def end(prefix, fields):
    return {prefix + name: value for name, value in fields.items()}


def report(number):
    client, server, kind = pairs[bisect.bisect(weights, rng.random() * total)]
    source = rng.choice(workloads[client][4])
    source_port = rng.randrange(32768, 61000)
    is_tcp = rng.random() < 0.85
    failed = is_tcp and rng.random() < 0.03
    last = START + number // 2 - rng.randrange(300)
    first = last - int(rng.lognormvariate(4.5, 1.6))
    namespace, name, service, port, pods = workloads[server]
    about, translated = {}, {}
    if not is_tcp:
        destination = {"Addr": "10.96.0.10", "Port": 53, "K8S_Name": "kube-dns", "K8S_Namespace": "kube-system", "K8S_Type": "Service",
            "K8S_OwnerName": "kube-dns", "K8S_OwnerType": "Service"}
        about = {"ServiceName": "kube-dns", "ServiceNamespace": "kube-system", "ServicePort": 53}
    elif kind < 0.6:
        destination = {"Addr": service, "Port": port, "K8S_Name": name, "K8S_Namespace": namespace, "K8S_Type": "Service",
            "K8S_OwnerName": name, "K8S_OwnerType": "Service"}
        about = {"DnsName": f"{name}.{namespace}.svc.cluster.local", "ServiceName": name, "ServiceNamespace": namespace, "ServicePort": port}
        translated = end("XlatDst", {**rng.choice(pods), "Port": port}) | {"XlatBy": "join"}
    elif kind < 0.85:
        destination = {**rng.choice(pods), "Port": port}
    else:
        host, addresses = rng.choice(outside)
        destination = {"Addr": rng.choice(addresses), "Port": 443}
        about = {"DnsName": host}
    sent, received = int(rng.lognormvariate(7.3, 1.2)), int(rng.lognormvariate(8.7, 1.5))
    flow = {"TimeFlowStartMs": first, "TimeFlowEndMs": last, "Etype": 2048, "Proto": 6 if is_tcp else 17}
    common = {"FlowEndReason": rng.choice(["endOfFlow", "endOfFlow", "endOfFlow", "activeTimeout", "idleTimeout"]), "Opener": "syn" if is_tcp else "firstFrame"}
    if is_tcp:
        common["ConnId"] = f"{rng.getrandbits(64):016x}"
        if not failed:
            common = {"TimeFlowRttNs": int(rng.lognormvariate(13, 0.8))} | common
    if failed:
        common["Failure"] = rng.choice(["refused", "noAnswer"])
        sent = received = 0
    elif not is_tcp:
        sent, received = rng.randrange(40, 60), rng.randrange(80, 200)

    def direction(payload, is_reply):
        packets = 3 + payload // 1400 if is_tcp else 1
        fields = flow | {"Bytes": payload + 66 * packets, "Packets": packets}
        if is_tcp:
            fields |= {"Flags": 2 if failed else 27, "MirrorMissingBytes": 0, "CollectorMissingBytes": 0, "RetransBytes": 1448 if rng.random() < 0.01 else 0}
        near, far = ("Dst", "Src") if is_reply else ("Src", "Dst")
        fields |= {"PayloadBytes": payload} | end(near, {**source, "Port": source_port}) | end(far, destination) | common
        if is_reply:
            fields["Reply"] = True
        fields |= end(far, about)
        if not is_reply:
            if not is_tcp:
                question = f"{name}.{namespace}.svc.cluster.local"
                fields |= {"DnsId": rng.randrange(65536), "DnsName": question, "DnsFlagsResponseCode": "NoError", "DnsLatencyMs": rng.randrange(5)}
            elif "ServiceName" not in about and "DnsName" in about:
                fields["TlsSni"] = about["DnsName"]
            fields |= translated
        return json.dumps(fields, separators=(",", ":"))

    return [direction(sent, False)] if failed else [direction(sent, False), direction(received, True)]


for number in range(reports):
    print("\n".join(report(number)))
