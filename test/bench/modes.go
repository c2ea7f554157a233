package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// baseline is the mode without a tap, which the others are held against, and
// reference the one whose copy is the measure of a copy's price.
const (
	baseline  = "plain"
	reference = "mirred"
)

// mode is a way to copy every packet of eth3 to the sensor behind eth2, both
// directions, with the address translation of the kernel beside it.
type mode struct {
	name string
	what string
	up   func(context.Context, *lab) error
}

func (m mode) title() string { return m.name }

var allModes = []mode{
	{baseline, "MASQUERADE, no tap", nil},
	{"tapgate", "tapgate attach", tapgate},
	{"tapgate-raw", "bpf_clone_redirect and nothing else: the floor", rawTap},
	{"tee", "iptables TEE (the recipe)", tee},
	{"nft-dup", "nft dup to, in the same hooks", nftDup},
	{reference, "tc mirred on clsact", mirred},
}

// commands makes a mode of commands in the gateway's namespace.
func commands(lines ...string) func(context.Context, *lab) error {
	return func(ctx context.Context, l *lab) error { return l.run(ctx, l.gateway, lines...) }
}

var tee = commands(
	"iptables -t mangle -A PREROUTING -i eth3 -j TEE --gateway 192.168.4.2",
	"iptables -t mangle -A FORWARD -o eth3 -j TEE --gateway 192.168.4.2",
)

var nftDup = commands(
	"nft add table ip bench_dup",
	"nft add chain ip bench_dup before { type filter hook prerouting priority mangle; }",
	"nft add chain ip bench_dup forwarded { type filter hook forward priority mangle; }",
	"nft add rule ip bench_dup before iifname eth3 dup to 192.168.4.2 device eth2",
	"nft add rule ip bench_dup forwarded oifname eth3 dup to 192.168.4.2 device eth2",
)

var mirred = commands(
	"tc qdisc add dev eth3 clsact",
	"tc filter add dev eth3 ingress protocol all prio 1 u32 match u32 0 0 action mirred egress mirror dev eth2",
	"tc filter add dev eth3 egress protocol all prio 1 u32 match u32 0 0 action mirred egress mirror dev eth2",
)

func tapgate(ctx context.Context, l *lab) error {
	if l.set.tapgate == "" {
		return fmt.Errorf("no tapgate binary: name one with --tapgate, or run scripts/bench.sh, which builds it")
	}
	return l.tapgate(ctx, "attach --internal eth3 --dmz eth2 --sensor 192.168.4.2")
}

// tapgate runs a command that puts something in force, which goes with the lab.
func (l *lab) tapgate(ctx context.Context, command string) error {
	if err := l.run(ctx, "", "mkdir "+l.bpffs(), "mount -t bpf bpf "+l.bpffs()); err != nil {
		return err
	}
	l.onClose(func() { _ = l.run(context.Background(), "", "umount "+l.bpffs()) })
	where := " --netns " + l.gateway + " --bpffs " + l.bpffs()
	l.onClose(func() { _ = l.run(context.Background(), "", l.set.tapgate+" detach"+where) })
	return l.run(ctx, "", l.set.tapgate+" "+command+where)
}

func (l *lab) bpffs() string { return filepath.Join(l.folder, "bpffs") }

func rawTap(_ context.Context, l *lab) error {
	var eth2 int
	err := within(l.gateway, -1, func() error {
		ifc, err := net.InterfaceByName("eth2")
		if err == nil {
			eth2 = ifc.Index
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, where := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		prog, err := newRawTap(eth2, where)
		if err != nil {
			return err
		}
		if err := l.attach(l.gateway, "eth3", prog, where); err != nil {
			return err
		}
	}
	return nil
}
