// A peer of rpcap's active mode, by libpcap: waits for a daemon that connects, captures from its interface, and writes what it gets.
//   active PORT INTERFACE FRAMES FILE [udp]
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <pcap.h>

static void fail(const char *what, const char *why)
{
	fprintf(stderr, "%s: %s\n", what, why);
	exit(1);
}

int main(int count, char **arguments)
{
	char error[PCAP_ERRBUF_SIZE] = "", host[256] = "", source[PCAP_BUF_SIZE];
	struct pcap_rmtauth null = { .type = RPCAP_RMTAUTH_NULL };

	if (count < 5)
		fail(arguments[0], "PORT INTERFACE FRAMES FILE [udp]");
	fprintf(stderr, "waiting\n");
	if (pcap_remoteact_accept("127.0.0.1", arguments[1], NULL, host, &null, error) == INVALID_SOCKET)
		fail("pcap_remoteact_accept", error);

	if (pcap_createsrcstr(source, PCAP_SRC_IFREMOTE, host, arguments[1], arguments[2], error) != 0)
		fail("pcap_createsrcstr", error);
	int flags = count > 5 && strcmp(arguments[5], "udp") == 0 ? PCAP_OPENFLAG_DATATX_UDP : 0;
	pcap_t *capture = pcap_open(source, 65535, flags, 1000, &null, error);
	if (!capture)
		fail("pcap_open", error);
	pcap_dumper_t *file = pcap_dump_open(capture, arguments[4]);
	if (!file)
		fail("pcap_dump_open", pcap_geterr(capture));

	// The capture begins with the first call.
	int wanted = atoi(arguments[3]), received = 0;
	while (received < wanted) {
		struct pcap_pkthdr *header;
		const unsigned char *bytes;
		int result = pcap_next_ex(capture, &header, &bytes);
		if (received == 0 && result == 0)
			fprintf(stderr, "capturing\n");
		if (result < 0)
			fail("pcap_next_ex", pcap_geterr(capture));
		if (result > 0) {
			pcap_dump((unsigned char *)file, header, bytes);
			received++;
		}
	}
	struct pcap_stat statistics;
	if (pcap_stats(capture, &statistics) != 0)
		fail("pcap_stats", pcap_geterr(capture));
	printf("%d frames, %u passed, %u dropped\n", received, statistics.ps_recv, statistics.ps_drop);
	pcap_dump_close(file);
	pcap_close(capture);
	return 0;
}
