package main

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// needed are the capabilities that loading, attaching, pinning and entering
// network namespaces ask for.
var needed = []struct {
	bit  uint
	name string
}{
	{unix.CAP_BPF, "CAP_BPF"},
	{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"},
	{unix.CAP_PERFMON, "CAP_PERFMON"},
	{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"},
}

// needRoot refuses to start what would fail half way for want of rights.
func (e *env) needRoot() error {
	missing := e.missingCaps
	if missing == nil {
		missing = missingCaps
	}
	if m := missing(); len(m) > 0 {
		return fmt.Errorf("needs root (CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_SYS_ADMIN); missing here: %s; try sudo",
			strings.Join(m, ", "))
	}
	return nil
}

// missingCaps lists needed capabilities that this process cannot use. If the
// kernel does not say, the calls that need them will.
func missingCaps() []string {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return nil
	}
	have := uint64(data[0].Effective) | uint64(data[1].Effective)<<32
	// Before 5.8 and for compatibility since, CAP_SYS_ADMIN contains these two.
	if have&(1<<unix.CAP_SYS_ADMIN) != 0 {
		have |= 1<<unix.CAP_BPF | 1<<unix.CAP_PERFMON
	}
	var missing []string
	for _, c := range needed {
		if have&(1<<c.bit) == 0 {
			missing = append(missing, c.name)
		}
	}
	return missing
}
