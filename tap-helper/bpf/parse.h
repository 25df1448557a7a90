/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/* Parser of Ethernet, VLAN, IP and transport headers. */
#pragma once
#include "maps.h"

#define FIRST_FRAGMENT 1
#define LATER_FRAGMENT 2

#define TCP 6
#define UDP 17
#define SCTP 132
#define ICMP 1
#define ICMPV6 58

/* A packet with more IPv6 extension headers has NO_PROTOCOL. */
#define EXTENSION_HEADERS 8

struct ipv4 {
	__u8 version, tos;
	__u16 length, id, fragment;
	__u8 ttl, protocol;
	__u16 checksum;
	__u32 source, destination;
};

struct ipv6 {
	__u32 flow;
	__u16 length;
	__u8 next, limit;
	__u32 source[4], destination[4];
};

/* Loads up to `size` bytes at an offset and returns how many there were. The rest of `to` is unchanged. */
INLINE __u32 load(const struct __sk_buff *skb, __u32 offset, void *to, __u32 size)
{
	if (!bpf_skb_load_bytes(skb, offset, to, size))
		return size;
	if (skb->len <= offset)
		return 0;
	/* The verifier of 6.1 derives no lower bound from a comparison with 0, and only bounds the register that is compared.
	 * This form tells it that the size is at least 1. */
	__u32 last = skb->len - offset - 1;
	asm volatile("" : "+r"(last));
	if (last >= size - 1)
		return 0;
	asm volatile("" : "+r"(last));
	if (bpf_skb_load_bytes(skb, offset, to, last + 1))
		return 0;
	return last + 1;
}

/* Direct packet access, without a helper call, to headers in the linear part of the skb; nearly all are there. Or 0. */
#define direct(skb, offset, type)                                                         \
	({                                                                                \
		void *at_ = (void *)(long)(skb)->data + (offset);                         \
		at_ + sizeof(type) <= (void *)(long)(skb)->data_end ? (type *)at_ : 0;     \
	})

INLINE void parse_ipv4(const struct __sk_buff *skb, __u32 offset, struct packet *packet)
{
	struct ipv4 ip = {}, *header = direct(skb, offset, struct ipv4);
	__u32 loaded = sizeof(ip);
	if (header)
		ip = *header;
	else
		loaded = load(skb, offset, &ip, sizeof(ip));
	packet->l4 = offset;
	if (loaded == 0 || ip.version >> 4 != 4)
		return;
	packet->family = 4;
	if (loaded >= 10)
		packet->protocol = ip.protocol;
	if (loaded >= 16)
		packet->source_valid = 1;
	packet->source[0] = ip.source;
	if (loaded < sizeof(ip))
		return;
	packet->destination_valid = 1;
	packet->destination[0] = ip.destination;
	packet->ip_end = offset + from_net16(ip.length);
	packet->l4 = offset + (ip.version & 15) * 4;
	__u16 fragment = from_net16(ip.fragment);
	packet->id = ip.id;
	packet->fragment = fragment & 0x1fff ? LATER_FRAGMENT : fragment & 0x2000 ? FIRST_FRAGMENT : 0;
}

INLINE void parse_ipv6(const struct __sk_buff *skb, __u32 offset, struct packet *packet)
{
	struct ipv6 ip = {}, *header = direct(skb, offset, struct ipv6);
	__u32 loaded = sizeof(ip);
	if (header)
		ip = *header;
	else
		loaded = load(skb, offset, &ip, sizeof(ip));
	packet->l4 = offset;
	if (loaded == 0 || (ip.flow & from_net32(0xf0000000)) != from_net32(0x60000000))
		return;
	packet->family = 6;
	for (int i = 0; i < 4; i++) {
		packet->source[i] = ip.source[i];
		packet->destination[i] = ip.destination[i];
	}
	packet->source_valid = loaded >= 24;
	packet->destination_valid = loaded >= sizeof(ip);
	if (loaded < 7)
		return;
	__u32 next = ip.next;
	offset += sizeof(ip);
	packet->ip_end = offset + from_net16(ip.length);
	for (int i = 0; i < EXTENSION_HEADERS; i++) {
		/* Hop-by-hop options, routing, destination options, authentication, fragment (RFC 8200, RFC 4302) */
		if (next != 0 && next != 43 && next != 60 && next != 51 && next != 44) {
			packet->protocol = next;
			packet->l4 = offset;
			return;
		}
		__u8 extension[8] = {};
		if (bpf_skb_load_bytes(skb, offset, extension, sizeof(extension)))
			return;
		if (next == 44) {
			__u32 offset_and_flags = extension[2] << 8 | extension[3];
			packet->id = *(__u32 *)(extension + 4);
			packet->fragment = offset_and_flags & 0xfff8 ? LATER_FRAGMENT : offset_and_flags & 1 ? FIRST_FRAGMENT : 0;
		}
		__u32 length = next == 44 ? 8 : next == 51 ? (extension[1] + 2) * 4 : (extension[1] + 1) * 8;
		next = extension[0];
		offset += length;
		packet->l4 = offset;
		/* Payload follows, not the header that `next` names. */
		if (packet->fragment == LATER_FRAGMENT) {
			packet->protocol = next;
			return;
		}
	}
}

INLINE void parse(const struct __sk_buff *skb, struct packet *packet)
{
	__builtin_memset(packet, 0, sizeof(*packet));
	packet->protocol = NO_PROTOCOL;
	packet->source_port = packet->destination_port = NO_PORT;
	/* An offloaded VLAN tag is in skb->vlan_tci, not in the frame. */
	__u32 offset = 14;
	__u16 type = 0, *ethertype = direct(skb, 12, __u16);
	if (ethertype)
		type = *ethertype;
	else if (bpf_skb_load_bytes(skb, 12, &type, sizeof(type)))
		return;
	for (int i = 0; i < 2; i++) {
		if (type != from_net16(0x8100) && type != from_net16(0x88a8))
			break;
		if (bpf_skb_load_bytes(skb, offset + 2, &type, sizeof(type)))
			return;
		offset += 4;
	}
	packet->l3 = packet->l4 = offset;
	if (type == from_net16(0x0800))
		parse_ipv4(skb, offset, packet);
	else if (type == from_net16(0x86dd))
		parse_ipv6(skb, offset, packet);
}

INLINE int has_ports(const struct packet *packet)
{
	__u32 protocol = packet->protocol;
	return protocol == TCP || protocol == UDP || protocol == SCTP;
}

INLINE void parse_ports(const struct __sk_buff *skb, struct packet *packet)
{
	if (!has_ports(packet))
		return;
	struct datagram datagram = {};
	if (packet->fragment) {
		for (int i = 0; i < 4; i++) {
			datagram.source[i] = packet->source[i];
			datagram.destination[i] = packet->destination[i];
		}
		datagram.id = packet->id;
		datagram.protocol = packet->protocol;
	}
	if (packet->fragment == LATER_FRAGMENT) {
		struct ports *ports = bpf_map_lookup_elem(&fragments, &datagram);
		if (ports) {
			packet->source_port = ports->source;
			packet->destination_port = ports->destination;
		}
		return;
	}
	__u16 port[2] = {};
	__u32 l4 = packet->l4, loaded = sizeof(port), *header = l4 < 256 ? direct(skb, l4, __u32) : 0;
	if (header)
		*(__u32 *)port = *header;
	else
		loaded = load(skb, l4, port, sizeof(port));
	if (loaded >= 2)
		packet->source_port = from_net16(port[0]);
	if (loaded < 4)
		return;
	packet->destination_port = from_net16(port[1]);
	if (packet->fragment == FIRST_FRAGMENT) {
		struct ports ports = { packet->source_port, packet->destination_port };
		bpf_map_update_elem(&fragments, &datagram, &ports, 0);
	}
}

/* Whether the ports of a protocol that has them are unknown: in a fragment whose first one was not seen, or in one that is cut off. */
INLINE int ports_unknown(const struct packet *packet)
{
	return has_ports(packet) && packet->destination_port == NO_PORT;
}

/* Length of all headers through the transport header; 0 if the frame was not parsed. */
INLINE __u32 header_length(const struct __sk_buff *skb, struct packet *packet)
{
	__u32 l4 = packet->l4, protocol = packet->protocol;
	if (packet->fragment == LATER_FRAGMENT)
		return l4;
	switch (protocol) {
	case TCP: {
		__u8 words_and_flags[2] = {};
		if (bpf_skb_load_bytes(skb, l4 + 12, words_and_flags, sizeof(words_and_flags)))
			return l4;
		packet->tcp_flags = words_and_flags[1];
		return l4 + (words_and_flags[0] >> 4) * 4;
	}
	case UDP:
	case ICMP:
	case ICMPV6:
		return l4 + 8;
	case SCTP:
		return l4 + 12;
	default:
		return l4;
	}
}
