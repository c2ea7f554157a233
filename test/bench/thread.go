package main

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// within runs f on a thread of its own, in a network namespace (the caller's
// if ns is "") and on one CPU (any if cpu is -1). Processes started by f
// inherit both.
func within(ns string, cpu int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and the
		// namespace and the CPU with it.
		runtime.LockOSThread()
		done <- func() error {
			if ns != "" {
				if err := enter(ns); err != nil {
					return err
				}
			}
			if cpu >= 0 {
				var cpus unix.CPUSet
				cpus.Set(cpu)
				if err := unix.SchedSetaffinity(0, &cpus); err != nil {
					return fmt.Errorf("stay on CPU %d: %w", cpu, err)
				}
			}
			return f()
		}()
	}()
	return <-done
}

func enter(ns string) error {
	file, err := os.Open("/run/netns/" + ns)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", ns, err)
	}
	return nil
}

// lastCPU is the highest CPU that this process may use: interrupts and other
// work tend to sit on the first one.
func lastCPU() int {
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err != nil {
		return 0
	}
	last := 0
	for i := range runtime.NumCPU() + 1024 {
		if cpus.IsSet(i) {
			last = i
		}
	}
	return last
}
