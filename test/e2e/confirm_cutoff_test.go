package e2e

import "testing"

// An admin cuts himself off, and nobody is left who could confirm: his session is
// killed, no tapgate runs. Past the deadline he can log in again.
func TestConfirmCutOff(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	s := g.sshd()
	const external = "203.0.113.1"
	g.must("apply", "-f", g.file("good.yaml", lockoutNAT))
	bad := g.file("bad.yaml", lockoutNAT+"  forwards:\n    - {name: jump, in: external, proto: tcp, port: 2222, to: \"192.168.3.2:22\"}\n")
	a := s.session(g.outer(), "", external, binary+" apply -f "+bad+" --bpffs "+g.bpffs+" --confirm 1h --force >/dev/null 2>&1")
	eventually(t, func() string {
		if g.status().Pending == nil {
			return "no change waits"
		}
		return ""
	})
	if !a.cut() {
		t.Fatal("the change does not cut its admin off: the test shows nothing")
	}
	if err := a.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	g.pastDeadlineNow() // by the clock: TestShortConfirm
	if b := s.session(g.outer(), "", external, "echo in"); !b.says("in") {
		t.Error("cannot log in when the change has gone back")
	}
	if r := g.status().Returned; r == nil || !r.Itself {
		t.Errorf("status: %+v", r)
	}
}
