package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// gateBaseline is what ratios are taken to, gateRecipe those with a tap, and floor
// what a packet costs that is forwarded and no more.
const (
	gateBaseline = "masquerade"
	gateRecipe   = "masquerade-tee"
	gateFloor    = "forward"
	gateFast     = "tapgate-fast"
	gateFastTap  = "tapgate-fast-tap"
	gateOptional = "tapgate-kernel"
)

// gateMode is a way to translate. The kernel's has forwards in an nft map, its
// best way: one lookup, however many there are.
type gateMode struct {
	name   string
	what   string
	direct bool // nothing is translated
	kernel bool // flows stand in conntrack
	tap    bool
	fast   bool // packets of known flows must not take the stack
	skips  func(scenario) bool
	up     func(context.Context, *gateLab) error
}

// knownFlows is where how flows are made makes no difference.
func knownFlows(s scenario) bool { return !s.fresh }

func (m gateMode) measures(s scenario) bool {
	return (m.skips == nil || !m.skips(s)) && (s.only == nil || s.only(m))
}

func (m gateMode) title() string { return m.name }

var gateModes = []gateMode{
	{name: gateFloor, what: "forwarding, neither NAT nor firewall", direct: true, up: func(context.Context, *gateLab) error { return nil }},
	{name: gateBaseline, what: "nft masquerade, forwards by an nft map", kernel: true, up: kernelNAT},
	{name: gateFast, what: "tapgate, forwarding: fast", fast: true, up: ownNAT("fast", "")},
	{name: "tapgate-fast-prealloc", what: "the same, nat: {preallocate: true}", fast: true, skips: knownFlows, up: ownNAT("fast", "preallocate: true")},
	{name: gateOptional, what: "tapgate, forwarding: kernel", up: ownNAT("kernel", "")},
	{name: gateRecipe, what: "the recipe: masquerade and iptables TEE", kernel: true, tap: true, up: beside(tee)},
	{name: "masquerade-nft-dup", what: "masquerade and nft dup in the same hooks", kernel: true, tap: true, up: beside(nftDup)},
	{name: "masquerade-mirred", what: "masquerade and tc mirred on clsact", kernel: true, tap: true, up: beside(mirred)},
	{name: gateFastTap, what: "tapgate with a mirror of the inside, forwarding: fast", tap: true, fast: true, up: ownNAT("fast", "")},
	{name: "tapgate-kernel-tap", what: "the same, forwarding: kernel", tap: true, up: ownNAT("kernel", "")},
}

// beside is the kernel's NAT and a tap that the bench of taps has too.
func beside(tap func(context.Context, *lab) error) func(context.Context, *gateLab) error {
	return func(ctx context.Context, l *gateLab) error {
		if err := kernelNAT(ctx, l); err != nil {
			return err
		}
		return tap(ctx, l.lab)
	}
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

// forwardTo is the inside host of a forward, as the generator knows it.
func forwardTo(i int) string {
	a := gateInside.As4()
	a[3] += byte(i % gateHosts)
	return fmt.Sprintf("%d.%d.%d.%d", a[0], a[1], a[2], a[3])
}

func ownNAT(forwarding, option string) func(context.Context, *gateLab) error {
	return func(ctx context.Context, l *gateLab) error {
		if l.set.tapgate == "" {
			return fmt.Errorf("no tapgate binary: name one with --tapgate, or run scripts/bench.sh, which builds it")
		}
		file := filepath.Join(l.folder, "tapgate.yaml")
		if err := os.WriteFile(file, []byte(l.config(forwarding, option)), 0o600); err != nil {
			return err
		}
		err := l.lab.tapgate(ctx, "apply -f "+file)
		if err != nil && l.set.allowSlow && strings.Contains(err.Error(), "forwarding") {
			// A tapgate from before there was a fast path.
			_, older, _ := strings.Cut(l.config(forwarding, option), "\n")
			if err := os.WriteFile(file, []byte(older), 0o600); err != nil {
				return err
			}
			return l.run(ctx, "", l.set.tapgate+" apply -f "+file+" --netns "+l.gateway+" --bpffs "+l.bpffs())
		}
		return err
	}
}

func (l *gateLab) config(forwarding, option string) string {
	var b strings.Builder
	room := l.scenario.capacity()
	fmt.Fprintf(&b, `forwarding: %s
zones:
  external: {interfaces: [eth0]}
  internal: {interfaces: [eth3], prefixes: [192.168.3.0/24, 10.9.0.0/24]}
  dmz: {interfaces: [eth2]}
nat:
  masquerade: [{from: internal, to: external}]
  max_flows: %d
  max_flows_per_host: %d
  timeouts: {udp: 3600s, udp_unanswered: 3600s}
`, forwarding, room, room)
	if option != "" {
		fmt.Fprintf(&b, "  %s\n", option)
	}
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
	return b.String()
}
