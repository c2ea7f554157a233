package loader

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Everything here is called inside the gateway's network namespace (namespace.do).

// hook is one place for a program: a direction of an interface.
type hook struct {
	ifindex int
	ifname  string // for messages
	egress  bool
	first   bool // before other people's programs, else after them
}

func (h hook) String() string {
	direction := "ingress"
	if h.egress {
		direction = "egress"
	}
	return fmt.Sprintf("%q %s", h.ifname, direction)
}

// attachProgram sees to it that prog, and nothing else of ours, is attached to the
// hook under name: whatever is there by that name is replaced without a gap. With
// AttachAuto it falls back to clsact only where the kernel has no TCX. It returns
// the kind in use.
func attachProgram(prog *ebpf.Program, name string, h hook, want AttachKind, pinDir string) (AttachKind, error) {
	kind, err := upsertProgram(prog, name, h, want, filepath.Join(pinDir, name))
	if err != nil {
		return "", fmt.Errorf("attach %s to %s: %w", name, h, explainGone(err))
	}
	return kind, nil
}

func upsertProgram(prog *ebpf.Program, name string, h hook, want AttachKind, pin string) (AttachKind, error) {
	if want != AttachClsact {
		err := upsertTCX(prog, pin, h)
		if err == nil {
			return AttachTCX, removeFilters(name, h)
		}
		if want == AttachTCX || !errors.Is(err, ebpf.ErrNotSupported) {
			return "", err
		}
	}
	if err := upsertFilter(prog, name, h); err != nil {
		return "", err
	}
	return AttachClsact, removeTCX(pin)
}

// attachKindFor says what attachProgram will use, so that the caller can add the
// clsact qdisc, and record that, before.
func attachKindFor(want AttachKind) AttachKind {
	if want == AttachAuto && !haveTCX() {
		return AttachClsact
	}
	if want == AttachAuto {
		return AttachTCX
	}
	return want
}

// detachProgram removes what attachProgram attached under name, of both kinds. What
// is gone already, also with its interface, counts as done. The clsact qdisc stays:
// see removeClsact.
func detachProgram(name string, h hook, pinDir string) error {
	err := errors.Join(removeTCX(filepath.Join(pinDir, name)), removeFilters(name, h))
	if err != nil {
		return fmt.Errorf("detach %s from %s: %w", name, h, err)
	}
	return nil
}

// attachedKind says how the program of that name is attached to the hook, "" if it
// is not, and which programs and filters of others run before it.
func attachedKind(name string, h hook, pinDir string) (kind AttachKind, progID ebpf.ProgramID, inFront []string, err error) {
	fail := func(err error) (AttachKind, ebpf.ProgramID, []string, error) {
		return "", 0, nil, fmt.Errorf("look for %s on %s: %w", name, h, err)
	}
	attached, err := queryTCX(h)
	if err != nil {
		return fail(err)
	}
	id, _, err := pinnedTCX(filepath.Join(pinDir, name))
	if err != nil {
		return fail(err)
	}
	for i, p := range attached {
		if l, ok := p.LinkID(); ok && l == id {
			return AttachTCX, p.ID, programNames(attached[:i]), nil
		}
	}
	filters, err := listFilters(h)
	if err != nil {
		return fail(err)
	}
	own, ok := ownFilter(filters, name)
	if !ok {
		return "", 0, nil, nil
	}
	return AttachClsact, own.program, append(programNames(attached), filtersBefore(filters, own)...), nil
}

// movedAway says whether the program of that name is alive on an interface that is
// not this one: its interface was moved to another network namespace (or the
// caller has the wrong index). Filters do not survive such a move.
func movedAway(name, pinDir string, h hook) (bool, error) {
	id, alive, err := pinnedTCX(filepath.Join(pinDir, name))
	if err != nil || !alive {
		return false, err
	}
	attached, err := queryTCX(h)
	if err != nil {
		return false, fmt.Errorf("look for %s on %s: %w", name, h, err)
	}
	_, here := findLink(attached, id)
	return !here, nil
}

// explainGone adds what to do to the error of an interface that vanished.
func explainGone(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%w: the interface is gone or was moved to another network namespace; see \"ip link\"", err)
	}
	return err
}
