package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// shedCapabilities takes from this process, for good, the capabilities that an agent
// has no need of. They belong to threads, and Go has many: the bounding set of one is
// made small, and this program started anew from it, with the same pid. It returns
// nil in the second one, and where there was nothing to take away.
func shedCapabilities(netns string) error {
	keep := map[int]bool{}
	for _, c := range needed {
		keep[int(c.bit)] = true
	}
	// Another process's namespace is open only to those who may trace it.
	if strings.HasPrefix(netns, "/proc/") {
		keep[unix.CAP_SYS_PTRACE] = true
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	shed := 0
	for c := 0; ; c++ {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0)
		if err != nil {
			break // the kernel knows no more of them
		}
		if has == 0 || keep[c] {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
			if shed > 0 {
				runtime.LockOSThread() // never unlocked: nothing else may run on this thread
			}
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
		shed++
	}
	if shed == 0 {
		return nil
	}
	// Before 5.11 maps count against a limit that only CAP_SYS_RESOURCE may raise.
	_ = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY})
	runtime.LockOSThread()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return fmt.Errorf("start %s anew: %w", self, unix.Exec(self, os.Args, os.Environ()))
}
