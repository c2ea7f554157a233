package loader

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// filterHandle marks our filters, with their name: "tg".
	filterHandle = 0x7467
	// lastPriority is where filters that shall run last start to look for a place.
	lastPriority = 0xfff0
)

// tcFilter is what we need to know of one tc filter.
type tcFilter struct {
	kind     string
	name     string // of bpf filters
	handle   uint32 // 0: the entry of a priority, not of a filter in it
	priority uint16
	protocol uint16
	chain    uint32
	program  ebpf.ProgramID // of bpf filters
}

// addClsact adds a clsact qdisc if there is none, and says whether it did.
func addClsact(ifindex int) (added bool, err error) {
	err = netlink.QdiscAdd(clsactQdisc(ifindex))
	if err == nil {
		return true, nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return false, fmt.Errorf("add clsact qdisc: %w", err)
	}
	kind, err := ingressQdisc(ifindex)
	if err == nil && kind != "" && kind != "clsact" {
		err = fmt.Errorf("the interface has an %q qdisc, which has no egress and leaves no place for clsact; "+
			"change it to clsact with its filters, or take it away (tc qdisc del dev DEV ingress)", kind)
	}
	return false, err
}

// removeClsact removes the clsact qdisc if no filters of anybody remain in it.
func removeClsact(ifindex int) error {
	kind, err := ingressQdisc(ifindex)
	if err != nil || kind != "clsact" {
		return err
	}
	for _, egress := range []bool{false, true} {
		filters, err := listFilters(hook{ifindex: ifindex, egress: egress})
		if err != nil || len(filters) > 0 {
			return err
		}
	}
	err = netlink.QdiscDel(clsactQdisc(ifindex))
	if err != nil && !isGone(err) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("remove clsact qdisc: %w", err)
	}
	return nil
}

// upsertFilter puts prog on the hook as a clsact filter, in place of the one of
// that name if there is one.
func upsertFilter(prog *ebpf.Program, name string, h hook) error {
	added, err := addClsact(h.ifindex)
	if err != nil {
		return err
	}
	if err := replaceFilter(prog, name, h); err != nil {
		if added {
			err = errors.Join(err, removeClsact(h.ifindex))
		}
		return err
	}
	return nil
}

func replaceFilter(prog *ebpf.Program, name string, h hook) error {
	filters, err := listFilters(h)
	if err != nil {
		return err
	}
	own, ok := ownFilter(filters, name)
	if ok {
		id, err := programID(prog)
		if err != nil || own.program == id {
			return err
		}
	} else {
		own.priority, err = freePriority(filters, h.first)
		if err != nil {
			return err
		}
	}
	err = netlink.FilterReplace(bpfFilter(h, name, own.priority, prog.FD()))
	if err != nil {
		return fmt.Errorf("add clsact filter with priority %d: %w", own.priority, err)
	}
	return nil
}

// removeFilters removes our filters of that name from the hook.
func removeFilters(name string, h hook) error {
	for {
		filters, err := listFilters(h)
		if err != nil {
			return err
		}
		own, ok := ownFilter(filters, name)
		if !ok {
			return nil
		}
		err = netlink.FilterDel(bpfFilter(h, name, own.priority, -1))
		if err == nil || isGone(err) {
			continue
		}
		// Without its qdisc a filter is an invalid argument: look again.
		if kind, e := ingressQdisc(h.ifindex); e == nil && kind == "" {
			return nil
		}
		return fmt.Errorf("remove clsact filter with priority %d: %w", own.priority, err)
	}
}

// listFilters lists what stands in the clsact qdisc on that hook, in the order it
// runs. A missing interface or qdisc has none. The netlink package's own list
// gives up on filters that it cannot parse, and those of others may be anything.
func listFilters(h hook) ([]tcFilter, error) {
	msgs, err := dumpTC(unix.RTM_GETTFILTER, unix.RTM_NEWTFILTER, h.ifindex, filterParent(h))
	if err != nil {
		return nil, fmt.Errorf("list filters: %w", err)
	}
	var filters []tcFilter
	for _, m := range msgs {
		tc := nl.DeserializeTcMsg(m)
		attrs, err := nl.ParseRouteAttr(m[tc.Len():])
		if err != nil {
			return nil, fmt.Errorf("list filters: %w", err)
		}
		f := tcFilter{handle: tc.Handle}
		f.priority, f.protocol = netlink.MajorMinor(tc.Info)
		f.protocol = nl.Swap16(f.protocol)
		for _, a := range attrs {
			switch a.Attr.Type & nl.NLA_TYPE_MASK {
			case nl.TCA_KIND:
				f.kind = unix.ByteSliceToString(a.Value)
			case nl.TCA_CHAIN:
				f.chain = nl.NativeEndian().Uint32(a.Value)
			case nl.TCA_OPTIONS:
				if f.kind != "bpf" {
					continue
				}
				options, err := nl.ParseRouteAttr(a.Value)
				if err != nil {
					return nil, fmt.Errorf("list filters: %w", err)
				}
				for _, o := range options {
					switch o.Attr.Type & nl.NLA_TYPE_MASK {
					case nl.TCA_BPF_NAME:
						f.name = unix.ByteSliceToString(o.Value)
					case nl.TCA_BPF_ID:
						f.program = ebpf.ProgramID(nl.NativeEndian().Uint32(o.Value))
					}
				}
			}
		}
		filters = append(filters, f)
	}
	return filters, nil
}

// ownFilter finds our filter of that name.
func ownFilter(filters []tcFilter, name string) (tcFilter, bool) {
	for _, f := range filters {
		if f.kind == "bpf" && f.handle == filterHandle && f.name == name && f.chain == 0 && f.protocol == unix.ETH_P_ALL {
			return f, true
		}
	}
	return tcFilter{}, false
}

// filtersBefore names the filters of others that packets meet before own.
func filtersBefore(filters []tcFilter, own tcFilter) []string {
	var names []string
	for _, f := range filters {
		switch {
		case f.chain != 0 || f.handle == 0 || f.priority >= own.priority:
		case f.name != "":
			names = append(names, f.name)
		default:
			names = append(names, fmt.Sprintf("%s filter with priority %d", f.kind, f.priority))
		}
	}
	return slices.Compact(names) // u32 lists its tables as well
}

// freePriority finds a priority that nobody uses: as low, or about as high, as can be.
func freePriority(filters []tcFilter, first bool) (uint16, error) {
	used := make(map[int]bool)
	for _, f := range filters {
		used[int(f.priority)] = true
	}
	start := lastPriority
	if first {
		start = 1
	}
	for p := start; p <= 0xffff; p++ {
		if !used[p] {
			return uint16(p), nil
		}
	}
	for p := start; p >= 1; p-- {
		if !used[p] {
			return uint16(p), nil
		}
	}
	return 0, errors.New("no clsact priority is free: see \"tc filter show\"")
}

// ingressQdisc gives the kind of the qdisc that holds ingress filters, "" for none.
func ingressQdisc(ifindex int) (string, error) {
	msgs, err := dumpTC(unix.RTM_GETQDISC, unix.RTM_NEWQDISC, ifindex, 0)
	if isGone(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("list qdiscs: %w", err)
	}
	for _, m := range msgs {
		tc := nl.DeserializeTcMsg(m)
		if int(tc.Ifindex) != ifindex || tc.Parent != netlink.HANDLE_CLSACT {
			continue // old kernels list the qdiscs of all interfaces
		}
		attrs, err := nl.ParseRouteAttr(m[tc.Len():])
		if err != nil {
			return "", fmt.Errorf("list qdiscs: %w", err)
		}
		for _, a := range attrs {
			if a.Attr.Type&nl.NLA_TYPE_MASK == nl.TCA_KIND {
				return unix.ByteSliceToString(a.Value), nil
			}
		}
	}
	return "", nil
}

// dumpTC asks for a list until it is one that nobody changed meanwhile.
func dumpTC(ask, answer int, ifindex int, parent uint32) (msgs [][]byte, err error) {
	for range 10 {
		req := nl.NewNetlinkRequest(ask, unix.NLM_F_DUMP)
		req.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(ifindex), Parent: parent})
		msgs, err = req.Execute(unix.NETLINK_ROUTE, uint16(answer))
		if !errors.Is(err, nl.ErrDumpInterrupted) {
			break
		}
	}
	if isGone(err) {
		return nil, nil
	}
	return msgs, err
}

// isGone says that what was asked about does not exist (any more).
func isGone(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT)
}

func filterParent(h hook) uint32 {
	if h.egress {
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}

func clsactQdisc(ifindex int) netlink.Qdisc {
	return &netlink.GenericQdisc{
		QdiscType: "clsact",
		QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: ifindex,
			Handle:    netlink.MakeHandle(0xffff, 0),
			Parent:    netlink.HANDLE_CLSACT,
		},
	}
}

func bpfFilter(h hook, name string, priority uint16, fd int) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: h.ifindex,
			Parent:    filterParent(h),
			Handle:    filterHandle,
			Protocol:  unix.ETH_P_ALL,
			Priority:  priority,
		},
		Fd:           fd,
		Name:         name,
		DirectAction: true,
	}
}

// removeAllFilters removes every filter of ours in the namespace, for state
// that does not say where they are.
func removeAllFilters() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	var errs []error
	for _, l := range links {
		for _, program := range slices.Concat(tapPrograms, dmzPrograms) {
			errs = append(errs, removeFilters(program, hookOf(program, l.Attrs().Index, l.Attrs().Name)))
		}
	}
	return errors.Join(errs...)
}
