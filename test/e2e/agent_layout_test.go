package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tapgate/loader"
	"tapgate/test/builds"
)

// health is what an agent that serves metrics says of itself.
func (g *gate) health() (code int, text string) {
	g.t.Helper()
	answer, err := g.client().Get(strings.Replace(agentMetrics, "metrics", "healthz", 1))
	if err != nil {
		g.t.Fatal(err)
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(answer.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	return answer.StatusCode, string(raw)
}

// An agent that comes to state of another layout is up for systemd, says once what is to
// be done, tells that it does not work, and changes nothing; once the state is its own it
// follows. One whose state has become another's ends.
func TestAgentWaitsForItsLayout(t *testing.T) {
	t.Parallel()
	g := newGate(t, changeConfig)
	other := g.by(anotherBuild(t, builds.Layout))
	socket := filepath.Join(g.Dir, "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	a := other.startAgent([]string{"NOTIFY_SOCKET=" + socket})
	if err := systemd.SetReadDeadline(time.Now().Add(gateWait)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	if n, err := systemd.Read(buf); err != nil || string(buf[:n]) != "READY=1" {
		t.Errorf("systemd hears %q, %v", buf[:n], err)
	}
	systemd.Close()
	why := fmt.Sprintf("layout %d, and this tapgate knows %d; this agent changes nothing", loader.Layout, loader.Layout+100)
	for range 3 {
		if code, text := other.health(); code != http.StatusServiceUnavailable || !strings.Contains(text, why) || !strings.Contains(text, "tapgate detach --force") {
			t.Errorf("health: %d %s", code, text)
		}
		looked := strings.Count(a.log.String(), "msg=reloading")
		a.signal(syscall.SIGHUP)
		retry(t, func() error {
			if strings.Count(a.log.String(), "msg=reloading") == looked {
				return fmt.Errorf("it does not look")
			}
			return nil
		})
	}
	in, out := g.pair()
	g.mapUDP(in, 5000, out, 80, false)
	g.wantProblems()

	shown := other.must("config", "show").stdout
	other.must("detach", "--force")
	a.says("there is no gateway here: waiting for one")
	other.apply(shown)
	a.says("msg=following")
	retry(t, func() error {
		if code, text := other.health(); code != http.StatusOK {
			return fmt.Errorf("health: %d %s", code, text)
		}
		return nil
	})
	if log := a.log.String(); strings.Count(log, why) != 1 || strings.Count(log, "msg=following") != 1 {
		t.Errorf("it said\n%s", log)
	}

	g.must("detach", "--force")
	g.apply(changeConfig)
	a.ended = true
	stays := time.AfterFunc(2*gateWait, func() { _ = a.cmd.Process.Kill() })
	defer stays.Stop()
	if err := a.cmd.Wait(); err == nil || a.cmd.ProcessState.ExitCode() != 1 || !strings.Contains(a.log.String(), "this agent ends, so that the one that is installed now is started") {
		t.Errorf("when it is another's again: %v\n%s", err, a.log)
	}
	g.wantProblems()
}
