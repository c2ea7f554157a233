package datapath

import (
	"testing"

	"github.com/cilium/ebpf"

	"tapgate/test/kernels"
)

func haveCheckMTU(t *testing.T) bool {
	t.Helper()
	has, err := kernels.Has("check_mtu")
	if err != nil {
		t.Fatal(err)
	}
	return has
}

// requireIngressIfindex skips where BPF_PROG_RUN takes no ingress_ifindex. That
// came with 5.16, as did the count of verified instructions, which tells it.
func requireIngressIfindex(t *testing.T) {
	t.Helper()
	_, err := gate.programs["dmz_out"].Run(&ebpf.RunOptions{Data: plainPacket(), Context: &skb{IngressIfindex: 1}})
	if err == nil {
		return
	}
	info, infoErr := gate.programs["dmz_out"].Info()
	if infoErr != nil {
		t.Fatal(infoErr)
	}
	if _, newer := info.VerifiedInstructions(); newer {
		t.Fatalf("BPF_PROG_RUN with ingress_ifindex: %v", err)
	}
	t.Skip(kernels.SkipPrefix + "prog_run_ingress_ifindex")
}
