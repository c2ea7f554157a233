package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Values of Config.Forwarding.
const (
	ForwardingFast   = "fast"
	ForwardingKernel = "kernel"
)

// ForwardingStatus says how the packets of known flows pass the machine.
type ForwardingStatus struct {
	Mode   string `json:"mode"`             // "fast": past the host's stack; "kernel": through it
	Wanted string `json:"wanted"`           // by the configuration
	Reason string `json:"reason,omitempty"` // why it is the kernel
}

// String is how people read it.
func (f ForwardingStatus) String() string {
	if f.Reason == "" {
		return f.Mode
	}
	return fmt.Sprintf("%s (%s)", f.Mode, f.Reason)
}

// fast says whether there is a fast path.
func (f ForwardingStatus) fast() bool { return f.Mode == ForwardingFast }

// byItself says that it is the kernel although fast is wanted.
func (f ForwardingStatus) byItself() bool { return !f.fast() && f.Wanted == ForwardingFast }

// forwarding is what the configuration says, or leaves to the default.
func (c Config) forwarding() string {
	if c.Forwarding == "" {
		return ForwardingFast
	}
	return c.Forwarding
}

func (r *resolver) checkForwarding() {
	switch r.cfg.Forwarding {
	case "", ForwardingFast, ForwardingKernel:
	default:
		r.fail("forwarding", "unknown forwarding %q: it is %s or %s", r.cfg.Forwarding, ForwardingFast, ForwardingKernel)
	}
}

// ingress is the index of an interface on which packets would take the fast path.
type ingress int

// forwardingOn decides how packets are forwarded between these interfaces. The fast
// path passes by what else looks at packets of the stack, and asks for routes
// without what only the stack knows of a packet: where the host relies on either,
// the kernel forwards. So it does where this cannot be found out. tracking are the
// settings of connection tracking that come with it; the journal may be nil.
func forwardingOn(wanted string, on []ingress, keep bool, j *journal) (f ForwardingStatus, tracking []sysctl) {
	f = ForwardingStatus{Mode: ForwardingKernel, Wanted: wanted}
	if wanted == ForwardingKernel {
		f.Reason = "the configuration says so"
		return f, nil
	}
	topo, err := readTopology()
	if err != nil {
		f.Reason = "not known: " + err.Error()
		return f, nil
	}
	looks := []func() (string, error){
		lackOfFast,
		func() (string, error) { return topo.foreignIngress(on) },
		func() (string, error) { return topo.nftIngress(on) },
		func() (string, error) { return topo.enslaved(on), nil },
		markedRules,
		xfrmPolicies,
		func() (why string, err error) { tracking, why, err = trackingSysctls(keep, j); return why, err },
	}
	for _, look := range looks {
		why, err := look()
		if err != nil {
			why = "not known: " + err.Error()
		}
		if why != "" {
			f.Reason = why
			return f, nil
		}
	}
	f.Mode = ForwardingFast
	return f, tracking
}

// lackOfFast says what of the kernel is missing.
func lackOfFast() (string, error) {
	err := features.HaveProgramHelper(ebpf.SchedCLS, asm.FnFibLookup)
	if errors.Is(err, ebpf.ErrNotSupported) {
		return "this kernel has no bpf_fib_lookup", nil
	}
	return "", err
}

// foreignIngress finds what others have put where packets come in.
func (t *topology) foreignIngress(on []ingress) (string, error) {
	for _, i := range on {
		l := t.byIndex[int(i)]
		if l == nil {
			continue
		}
		name := l.Attrs().Name
		if x := l.Attrs().Xdp; x != nil && x.Attached {
			return fmt.Sprintf("%q has an XDP program: %s", name, programName(ebpf.ProgramID(x.ProgId))), nil
		}
		h := hook{ifindex: int(i), ifname: name}
		attached, err := queryTCX(h)
		if err != nil {
			return "", err
		}
		for _, p := range programNames(attached) {
			if !ourProgram(p) {
				return fmt.Sprintf("another TCX program on %s: %s", h, p), nil
			}
		}
		filters, err := listFilters(h)
		if err != nil {
			return "", err
		}
		for _, f := range filters {
			if f.handle != 0 && !(f.kind == "bpf" && f.handle == filterHandle && ourProgram(f.name)) {
				return fmt.Sprintf("another filter on %s: %s", h, f), nil
			}
		}
	}
	return "", nil
}

func ourProgram(name string) bool {
	return slices.Contains(tapPrograms, name) || slices.Contains(dmzPrograms, name)
}

// String is what "tc filter show" begins with.
func (f tcFilter) String() string {
	if f.name != "" {
		return fmt.Sprintf("%s %s, priority %d", f.kind, f.name, f.priority)
	}
	return fmt.Sprintf("%s, priority %d", f.kind, f.priority)
}

// enslaved finds interfaces in a VRF. The kernel then names the VRF as where a
// packet came from.
func (t *topology) enslaved(on []ingress) string {
	for _, i := range on {
		if l := t.byIndex[int(i)]; l != nil {
			if vrf := t.vrfOf(l); vrf != "" {
				return fmt.Sprintf("%q is in VRF %q", l.Attrs().Name, vrf)
			}
		}
	}
	return ""
}

// vrfOf is the VRF that an interface is in, or "".
func (t *topology) vrfOf(l netlink.Link) string {
	if master := t.byIndex[l.Attrs().MasterIndex]; master != nil && master.Type() == "vrf" {
		return master.Attrs().Name
	}
	return ""
}

// xfrmPolicies says whether there are IPsec policies, but for those of sockets.
func xfrmPolicies() (string, error) {
	list, err := wholeDump(func() ([]netlink.XfrmPolicy, error) { return netlink.XfrmPolicyList(netlink.FAMILY_ALL) })
	if missingInKernel(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("list IPsec policies: %w", err)
	}
	for _, p := range list {
		if p.Dir <= netlink.XFRM_DIR_FWD {
			return "IPsec policies are installed: see \"ip xfrm policy\"", nil
		}
	}
	return "", nil
}

// missingInKernel says that the kernel does not have what was asked for.
func missingInKernel(err error) bool {
	return slices.ContainsFunc([]error{unix.EPROTONOSUPPORT, unix.EOPNOTSUPP, unix.EAFNOSUPPORT, unix.EINVAL},
		func(e error) bool { return errors.Is(err, e) })
}

// The settings of connection tracking: with windows that it has not seen move it
// would take the next packet of a fast flow for invalid. And data whose
// acknowledgement it has not seen would end a quiet connection after 5 minutes.
const (
	sysctlLiberal    = "net/netfilter/nf_conntrack_tcp_be_liberal"
	sysctlInvalidRST = "net/netfilter/nf_conntrack_tcp_ignore_invalid_rst" // 6.1
	sysctlUnacked    = "net/netfilter/nf_conntrack_tcp_timeout_unacknowledged"
	sysctlRetrans    = "net/netfilter/nf_conntrack_tcp_timeout_max_retrans"
)

// trackedTimeout is what RFC 5382 REQ-5 asks for, in seconds: connections that were
// fast may be quiet for so long.
const trackedTimeout = "7440"

// trackingSysctls are those that the fast path needs, or why it cannot have them.
// Where nothing is tracked it needs none.
func trackingSysctls(keep bool, j *journal) (list []sysctl, why string, err error) {
	liberal := sysctl{Key: sysctlLiberal, Value: "1"}
	now, err := liberal.readWith(keep, j)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, "", nil
	case err != nil:
		return nil, "", fmt.Errorf("read %s: %w", liberal, err)
	case now == liberal.Value:
	case keep:
		return nil, fmt.Sprintf("%s is %s, and sysctls are to be kept: connection tracking would take fast flows for invalid", liberal, now), nil
	default:
		if err := liberal.writable(); err != nil {
			return nil, fmt.Sprintf("%s cannot be set: %v", liberal, err), nil
		}
	}
	list = append(list, liberal)
	if keep {
		return list, "", nil
	}
	for _, s := range []sysctl{
		{Key: sysctlInvalidRST, Value: "1"}, {Key: sysctlUnacked, Value: trackedTimeout}, {Key: sysctlRetrans, Value: trackedTimeout},
	} {
		now, err := s.read()
		if err != nil || atLeast(now, s.Value) && now != s.Value || now != s.Value && s.writable() != nil {
			continue
		}
		list = append(list, s)
	}
	return list, "", nil
}

// atLeast compares settings that are numbers.
func atLeast(now, wanted string) bool {
	a, errA := strconv.ParseUint(now, 10, 64)
	b, errB := strconv.ParseUint(wanted, 10, 64)
	return errA == nil && errB == nil && a >= b
}

// readWith is what a setting is, or will be when we have put it back for sysctls to
// be kept.
func (s sysctl) readWith(keep bool, j *journal) (string, error) {
	now, err := s.read()
	if keep && err == nil && j != nil {
		if e := j.sysctl(s); e != nil && e.Value == now {
			now = e.Old
		}
	}
	return now, err
}

func (s sysctl) writable() error {
	file, err := s.file()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// ofTracking says whether a setting is for the fast path's sake.
func (s sysctl) ofTracking() bool {
	return slices.Contains([]string{sysctlLiberal, sysctlInvalidRST, sysctlUnacked, sysctlRetrans}, s.Key)
}

// need says what a setting is for.
func (s sysctl) need() string {
	if s.ofTracking() {
		return "the fast path needs " + s.Value + ", or connection tracking takes its flows for invalid or forgets them"
	}
	return "the gateway needs " + s.Value + " to forward"
}

// ingresses are the interfaces of a configuration with a fast path.
func (r *resolved) ingresses() (on []ingress) {
	for _, m := range r.members {
		if m.role != RoleDMZ {
			on = append(on, ingress(m.index))
		}
	}
	return on
}

// ingresses are those of the generation in force.
func (r *record) ingresses() (on []ingress) {
	for _, m := range r.Members {
		if m.Role != RoleDMZ {
			on = append(on, ingress(m.Ifindex))
		}
	}
	return on
}

// settle decides how a configuration forwards, on these interfaces.
func (g *resolvedGateway) settle(on []ingress, j *journal) {
	var tracking []sysctl
	g.forwarding, tracking = forwardingOn(g.forwarding.Wanted, on, g.nat.KeepSysctls, j)
	g.sysctls = append(withoutTracking(g.sysctls), tracking...)
}

func withoutTracking(list []sysctl) []sysctl {
	return slices.DeleteFunc(slices.Clone(list), sysctl.ofTracking)
}
