package kernels

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"runtime"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// probes say whether the kernel has a feature. Each runs in a network
// namespace of its own that ends with it; nil is yes, ebpf.ErrNotSupported no.
var probes = map[string]func() error{
	// what the gateway uses where it exists
	"tcx":              probeTCX,
	"clsact":           probeClsact,
	"netns_cookie":     probeNetnsCookie,
	"check_mtu":        helper(asm.FnCheckMtu),
	"atomic_fetch":     probeAtomicFetch,
	"bpf_loop":         helper(asm.FnLoop),
	"bpf_timer":        helper(asm.FnTimerInit),
	"netfilter_defrag": probeNetfilterDefrag,

	// what tests build their networks from
	"veth":    device("veth"),
	"bridge":  device("bridge"),
	"vlan":    device("vlan"),
	"bond":    device("bond"),
	"macvlan": device("macvlan"),
	"dummy":   device("dummy"),
	"ifb":     device("ifb"),
	"tun":     probeTun,
	"vrf":     device("vrf"),
	"vxlan":   device("vxlan"),
	"geneve":  device("geneve"),
	"gre":     device("gretap"),
	"erspan":  device("erspan"),
	"ip6gre":  device("ip6gretap"),

	"tbf":      qdisc("tbf"),
	"fq_codel": qdisc("fq_codel"),
	"fq":       qdisc("fq"),
	"netem":    qdisc("netem"),
	"prio":     qdisc("prio"),
	"htb":      qdisc("htb"),

	"mirred":         probeMirred,
	"nft_masquerade": nftRule(nftables.ChainTypeNAT, nftables.ChainHookPostrouting, &expr.Masq{}),
	"nft_dup": nftRule(nftables.ChainTypeFilter, nftables.ChainHookPrerouting,
		&expr.Immediate{Register: 1, Data: net.IPv4(127, 0, 0, 1).To4()}, &expr.Dup{RegAddr: 1}),
}

var (
	probeLock sync.Mutex
	probed    = map[string]error{}
)

// Features returns the names of all features that can be asked for, sorted.
func Features() []string { return slices.Sorted(maps.Keys(probes)) }

// Has probes whether the running kernel has a feature. It needs root. A name
// that is not among Features is an error.
func Has(feature string) (bool, error) {
	probe, ok := probes[feature]
	if !ok {
		return false, fmt.Errorf("no probe for kernel feature %q: add one to test/kernels/probes.go", feature)
	}
	probeLock.Lock()
	defer probeLock.Unlock()
	err, ok := probed[feature]
	if !ok {
		err = inNewNetns(probe)
		probed[feature] = err
	}
	if errors.Is(err, ebpf.ErrNotSupported) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("probe kernel feature %s: %w", feature, err)
	}
	return true, nil
}

// inNewNetns runs f in a network namespace that nothing else refers to. The
// thread is never unlocked, so it ends with the goroutine and the namespace with it.
func inNewNetns(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("new network namespace (root is needed): %w", err)
			return
		}
		_ = rlimit.RemoveMemlock() // needed before 5.11; without the right to do so small programs still fit
		done <- f()
	}()
	return <-done
}

const loopback = 1 // its ifindex in every network namespace

// absent turns an errno that means "no such thing" into ErrNotSupported, and
// any other that only finds fault with our short request into success.
func absent(err, means error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return err
	}
	if errors.Is(err, means) {
		return ebpf.ErrNotSupported
	}
	return nil
}

// device asks for a device without its parameters: an unknown kind is answered
// by EOPNOTSUPP before anything else is looked at.
func device(kind string) func() error {
	return func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "probe"
		return absent(netlink.LinkAdd(&netlink.GenericLink{LinkAttrs: attrs, LinkType: kind}), unix.EOPNOTSUPP)
	}
}

// qdisc asks for a qdisc without its parameters: an unknown kind is ENOENT.
func qdisc(kind string) func() error {
	return func() error {
		return absent(netlink.QdiscAdd(&netlink.GenericQdisc{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: loopback, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
			QdiscType:  kind,
		}), unix.ENOENT)
	}
}

// probeTun opens the device: netlink refuses this kind whether it exists or not.
func probeTun() error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return ebpf.ErrNotSupported
	}
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func helper(fn asm.BuiltinFunc) func() error {
	return func() error { return features.HaveProgramHelper(ebpf.SchedCLS, fn) }
}

func program(t ebpf.ProgramType, insns ...asm.Instruction) (*ebpf.Program, error) {
	insns = append(insns, asm.Mov.Imm(asm.R0, 1), asm.Return())
	return ebpf.NewProgram(&ebpf.ProgramSpec{Name: "probe", Type: t, Instructions: insns, License: "GPL"})
}

func probeTCX() error {
	p, err := program(ebpf.SchedCLS)
	if err != nil {
		return err
	}
	defer p.Close()
	l, err := link.AttachTCX(link.TCXOptions{Interface: loopback, Program: p, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return err
	}
	return l.Close()
}

func addClsact() error {
	return netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: loopback, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}})
}

func ingressFilter() netlink.FilterAttrs {
	return netlink.FilterAttrs{LinkIndex: loopback, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL}
}

func probeClsact() error {
	p, err := program(ebpf.SchedCLS)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := addClsact(); err != nil {
		return absent(err, unix.ENOENT)
	}
	return absent(netlink.FilterAdd(&netlink.BpfFilter{FilterAttrs: ingressFilter(), Fd: p.FD(), Name: "probe", DirectAction: true}), unix.ENOENT)
}

func probeMirred() error {
	if err := addClsact(); err != nil {
		return absent(err, unix.ENOENT)
	}
	f := &netlink.U32{FilterAttrs: ingressFilter(), Actions: []netlink.Action{&netlink.MirredAction{
		ActionAttrs:  netlink.ActionAttrs{Action: netlink.TC_ACT_PIPE},
		MirredAction: netlink.TCA_EGRESS_MIRROR,
		Ifindex:      loopback,
	}}}
	f.Handle = 0
	return absent(netlink.FilterAdd(f), unix.ENOENT)
}

func probeNetnsCookie() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	return absent(err, unix.ENOPROTOOPT)
}

// probeAtomicFetch loads an addition that returns the old value (5.12).
func probeAtomicFetch() error {
	add := asm.FetchAdd.Mem(asm.RFP, asm.R1, asm.DWord, -8)
	add.Constant = int64(asm.FetchAdd >> 8) // cilium/ebpf 0.22 forgets it and would encode a plain addition
	p, err := program(ebpf.SchedCLS,
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreMem(asm.RFP, -8, asm.R1, asm.DWord),
		add,
	)
	if errors.Is(err, unix.EINVAL) {
		return ebpf.ErrNotSupported
	}
	if err != nil {
		return err
	}
	return p.Close()
}

// probeNetfilterDefrag attaches a netfilter program that wants packets whole (6.6).
func probeNetfilterDefrag() error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "probe", Type: ebpf.Netfilter, AttachType: ebpf.AttachNetfilter, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()}})
	if errors.Is(err, unix.EINVAL) {
		return ebpf.ErrNotSupported
	}
	if err != nil {
		return err
	}
	defer p.Close()
	const prerouting, defrag = 0, 1
	l, err := link.AttachNetfilter(link.NetfilterOptions{Program: p, ProtocolFamily: unix.NFPROTO_IPV4,
		Hook: prerouting, Priority: -128, NetfilterFlags: defrag})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return ebpf.ErrNotSupported
	}
	if err != nil {
		return err
	}
	return l.Close()
}

// nftRule puts a rule into a chain of its own.
func nftRule(kind nftables.ChainType, hook *nftables.ChainHook, rule ...expr.Any) func() error {
	return func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "probe"})
		chain := c.AddChain(&nftables.Chain{Name: "probe", Table: table, Type: kind, Hooknum: hook, Priority: nftables.ChainPriorityFilter})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: rule})
		err = c.Flush()
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
			return ebpf.ErrNotSupported
		}
		return err
	}
}
