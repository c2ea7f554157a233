package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// gateBaseline is what ratios are taken to, and floor what a packet costs that
// is forwarded and no more.
const (
	gateBaseline = "masquerade"
	gateFloor    = "forward"
)

// gateMode is a way to translate. The kernel's has forwards in an nft map, its
// best way: one lookup, however many there are.
type gateMode struct {
	name   string
	what   string
	direct bool // nothing is translated
	kernel bool // flows stand in conntrack
	tap    bool
	up     func(context.Context, *gateLab) error
}

func (m gateMode) title() string { return m.name }

var gateModes = []gateMode{
	{gateFloor, "forwarding, neither NAT nor firewall", true, false, false, func(context.Context, *gateLab) error { return nil }},
	{gateBaseline, "nft masquerade, forwards by an nft map", false, true, false, kernelNAT},
	{"tapgate", "tapgate's NAT", false, false, false, func(ctx context.Context, l *gateLab) error { return l.ownNAT(ctx) }},
	{"masquerade-tee", "the recipe: masquerade and iptables TEE", false, true, true, recipe},
	{"tapgate-tap", "tapgate's NAT and a mirror of the inside", false, false, true, func(ctx context.Context, l *gateLab) error { return l.ownNAT(ctx) }},
}

func kernelNAT(ctx context.Context, l *gateLab) error {
	var b strings.Builder
	b.WriteString("table ip nat {\n")
	if n := l.scenario.forwards; n > 0 {
		b.WriteString("map forwards { type inet_service : ipv4_addr; elements = {\n")
		for i := range n {
			fmt.Fprintf(&b, "%d : %s,\n", forwardPort+i, forwardTo(i))
		}
		b.WriteString("} }\nchain pre { type nat hook prerouting priority dstnat;\n" +
			"iifname eth0 ip daddr 203.0.113.1 dnat to udp dport map @forwards\n}\n")
	}
	b.WriteString("chain post { type nat hook postrouting priority srcnat;\noifname eth0 masquerade\n}\n}\n")
	file := filepath.Join(l.folder, "nat.nft")
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		return err
	}
	// No flow shall end while others are measured.
	return l.run(ctx, l.gateway, "nft -f "+file,
		"sysctl -qw net.netfilter.nf_conntrack_udp_timeout=3600 net.netfilter.nf_conntrack_udp_timeout_stream=3600")
}

func recipe(ctx context.Context, l *gateLab) error {
	if err := kernelNAT(ctx, l); err != nil {
		return err
	}
	return l.run(ctx, l.gateway,
		"iptables -t mangle -A PREROUTING -i eth3 -j TEE --gateway 192.168.4.2",
		"iptables -t mangle -A FORWARD -o eth3 -j TEE --gateway 192.168.4.2")
}

// forwardTo is the inside host of a forward, as the generator knows it.
func forwardTo(i int) string {
	a := gateInside.As4()
	a[3] += byte(i % gateHosts)
	return fmt.Sprintf("%d.%d.%d.%d", a[0], a[1], a[2], a[3])
}

func (l *gateLab) ownNAT(ctx context.Context) error {
	if l.set.tapgate == "" {
		return fmt.Errorf("no tapgate binary: name one with --tapgate, or run scripts/bench.sh, which builds it")
	}
	var b strings.Builder
	room := max(l.scenario.room()*5/4, 1<<16)
	fmt.Fprintf(&b, `zones:
  external: {interfaces: [eth0]}
  internal: {interfaces: [eth3], prefixes: [10.9.0.0/24]}
  dmz: {interfaces: [eth2]}
nat:
  masquerade: [{from: internal, to: external}]
  max_flows: %d
  max_flows_per_host: %d
  timeouts: {udp: 3600s, udp_unanswered: 3600s}
`, room, room)
	if l.scenario.forwards > 0 {
		b.WriteString("  forwards:\n")
	}
	for i := range l.scenario.forwards {
		fmt.Fprintf(&b, "    - {name: f%d, in: external, proto: udp, port: %d, to: \"%s:%d\"}\n",
			i, forwardPort+i, forwardTo(i), forwardPort+i)
	}
	if l.mode.tap {
		b.WriteString("mirrors:\n  - {name: bench, zones: [internal], targets: [{via: 192.168.4.2}]}\n")
	}
	file := filepath.Join(l.folder, "tapgate.yaml")
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		return err
	}
	return l.lab.tapgate(ctx, "apply -f "+file)
}
