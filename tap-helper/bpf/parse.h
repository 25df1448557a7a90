/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
#pragma once
#include "maps.h"

#define FIRST 1
#define LATER 2

#define TCP 6
#define UDP 17
#define SCTP 132
#define ICMP 1
#define ICMPV6 58

/* Extension headers that are walked; a frame with more has no protocol. */
#define EXTENSIONS 8

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

/* Bytes at an offset, as many as there are; returns how many. The rest of `to` is as it was. */
INLINE __u32 load(const struct __sk_buff *skb, __u32 offset, void *to, __u32 size)
{
	if (!bpf_skb_load_bytes(skb, offset, to, size))
		return size;
	if (skb->len <= offset)
		return 0;
	/* In this form the verifier of 6.1 knows that the size is at least 1: of what is compared with 0 it does not, and of no other
	 * register than that which was compared. */
	__u32 more = skb->len - offset - 1;
	asm volatile("" : "+r"(more));
	if (more >= size - 1)
		return 0;
	asm volatile("" : "+r"(more));
	if (bpf_skb_load_bytes(skb, offset, to, more + 1))
		return 0;
	return more + 1;
}

/* Bytes where they are, if they are in the frame's first piece; nearly all headers are. Saves a call for each. */
#define direct(skb, offset, type)                                                         \
	({                                                                                \
		void *at_ = (void *)(long)(skb)->data + (offset);                         \
		at_ + sizeof(type) <= (void *)(long)(skb)->data_end ? (type *)at_ : 0;     \
	})

INLINE void parse_ipv4(const struct __sk_buff *skb, __u32 offset, struct packet *packet)
{
	struct ipv4 ip = {}, *near = direct(skb, offset, struct ipv4);
	__u32 there = sizeof(ip);
	if (near)
		ip = *near;
	else
		there = load(skb, offset, &ip, sizeof(ip));
	packet->l4 = offset;
	if (there == 0 || ip.version >> 4 != 4)
		return;
	packet->family = 4;
	if (there >= 10)
		packet->protocol = ip.protocol;
	if (there >= 16)
		packet->source_known = 1;
	packet->source[0] = ip.source;
	if (there < sizeof(ip))
		return;
	packet->destination_known = 1;
	packet->destination[0] = ip.destination;
	packet->l4 = offset + (ip.version & 15) * 4;
	__u16 fragment = from_net16(ip.fragment);
	packet->id = ip.id;
	packet->fragment = fragment & 0x1fff ? LATER : fragment & 0x2000 ? FIRST : 0;
}

INLINE void parse_ipv6(const struct __sk_buff *skb, __u32 offset, struct packet *packet)
{
	struct ipv6 ip = {}, *near = direct(skb, offset, struct ipv6);
	__u32 there = sizeof(ip);
	if (near)
		ip = *near;
	else
		there = load(skb, offset, &ip, sizeof(ip));
	packet->l4 = offset;
	if (there == 0 || (ip.flow & from_net32(0xf0000000)) != from_net32(0x60000000))
		return;
	packet->family = 6;
	for (int i = 0; i < 4; i++) {
		packet->source[i] = ip.source[i];
		packet->destination[i] = ip.destination[i];
	}
	packet->source_known = there >= 24;
	packet->destination_known = there >= sizeof(ip);
	if (there < 7)
		return;
	__u32 next = ip.next;
	offset += sizeof(ip);
	for (int i = 0; i < EXTENSIONS; i++) {
		/* Hop-by-hop options, routing, destination options, authentication, fragment (RFC 8200, RFC 4302) */
		if (next != 0 && next != 43 && next != 60 && next != 51 && next != 44) {
			packet->protocol = next;
			packet->l4 = offset;
			return;
		}
		__u8 header[8] = {};
		if (bpf_skb_load_bytes(skb, offset, header, sizeof(header)))
			return;
		if (next == 44) {
			__u32 begins = header[2] << 8 | header[3];
			packet->id = *(__u32 *)(header + 4);
			packet->fragment = begins & 0xfff8 ? LATER : begins & 1 ? FIRST : 0;
		}
		__u32 length = next == 44 ? 8 : next == 51 ? (header[1] + 2) * 4 : (header[1] + 1) * 8;
		next = header[0];
		offset += length;
		packet->l4 = offset;
		/* What follows is not the header that `next` says. */
		if (packet->fragment == LATER) {
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
	/* A tag that the device or the kernel took off is not in the frame: skb->vlan_tci. */
	__u32 offset = 14;
	__u16 type = 0, *near = direct(skb, 12, __u16);
	if (near)
		type = *near;
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
	if (packet->fragment == LATER) {
		struct ports *known = bpf_map_lookup_elem(&fragments, &datagram);
		if (known) {
			packet->source_port = known->source;
			packet->destination_port = known->destination;
		}
		return;
	}
	__u16 port[2] = {};
	__u32 l4 = packet->l4, there = sizeof(port), *near = l4 < 256 ? direct(skb, l4, __u32) : 0;
	if (near)
		*(__u32 *)port = *near;
	else
		there = load(skb, l4, port, sizeof(port));
	if (there >= 2)
		packet->source_port = from_net16(port[0]);
	if (there < 4)
		return;
	packet->destination_port = from_net16(port[1]);
	if (packet->fragment == FIRST) {
		struct ports ports = { packet->source_port, packet->destination_port };
		bpf_map_update_elem(&fragments, &datagram, &ports, 0);
	}
}

/* Bytes through the transport header; 0 if that is not known. */
INLINE __u32 headers(const struct __sk_buff *skb, const struct packet *packet)
{
	__u32 l4 = packet->l4, protocol = packet->protocol;
	if (packet->fragment == LATER)
		return l4;
	switch (protocol) {
	case TCP: {
		__u8 words = 0;
		if (bpf_skb_load_bytes(skb, l4 + 12, &words, 1))
			return l4;
		return l4 + (words >> 4) * 4;
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
