package lab_test

import (
	"strings"
	"testing"

	"tapgate/test/kernels"
	"tapgate/test/lab"
)

// The recipe's own commands in a firewalld of a lab's gateway, and nothing of it
// outside of that namespace or after its end.
func TestFirewalld(t *testing.T) {
	kernels.Require(t, "nft_masquerade")
	l := lab.ForTest(t, lab.Outside(1))
	f, err := l.Gateway.StartFirewalld()
	if err != nil {
		t.Fatal(err)
	}
	must := func(args ...string) string {
		t.Helper()
		out, err := f.FirewallCmd(args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for _, line := range []string{
		"--permanent --zone=external --change-interface=eth0",
		"--permanent --zone=internal --change-interface=eth3",
		"--permanent --zone=external --add-forward-port=port=3389:proto=tcp:toport=3389:toaddr=192.168.3.3",
		"--reload",
	} {
		must(strings.Fields(line)...)
	}
	if got := must("--get-zone-of-interface=eth3"); got != "internal" {
		t.Errorf("eth3 is in zone %s", got)
	}
	if got, err := f.Shell("nft list ruleset"); err != nil || !strings.Contains(got, "dnat ip to 192.168.3.3:3389") {
		t.Errorf("no rule of the forward (%v) in:\n%s", err, got)
	}
	// Its default rules: nothing from zone to zone.
	if n, err := l.Servers[0].Ping(t.Context(), l.Outside[0].Addr, 1); err != nil || n != 0 {
		t.Errorf("%d replies through a firewalld without a policy, %v", n, err)
	}
	if err := f.Stop(); err != nil {
		t.Fatal(err)
	}
	if got, err := f.Shell("nft list ruleset"); err != nil || strings.Contains(got, "firewalld") {
		t.Errorf("after its end (%v):\n%s", err, got)
	}
}
