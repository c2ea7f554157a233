// Package datapath holds the programs against tables of packets, by BPF_PROG_RUN:
// packet and policy in; verdict, bytes, copies and counters out. The policy goes
// through the loader, and copies leave by real interfaces. It needs root and no
// tools, and runs on every kernel of test/kernels/kernels.json.
package datapath

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"tapgate/test/lab"
)

// gate is the one gateway of all tests: building it is slow in an emulated kernel.
var gate *rig

func TestMain(m *testing.M) {
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "datapath:", err)
		code = 1
	}
	os.Exit(code)
}

func runTests(m *testing.M) (code int, err error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("needs root: it makes network namespaces")
	}
	if _, err := lab.RemoveStale(); err != nil {
		return 1, err
	}
	if gate, err = newRig(); err != nil {
		return 1, err
	}
	code = m.Run()
	return code, gate.close()
}
