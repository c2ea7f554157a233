package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapgate/test/lab"
)

// space is a network namespace with a tapped and a dmz interface, for tests
// that need many namespaces or their end.
type space struct {
	name string
	lock *os.File // says to lab.RemoveStale that it is in use
}

var spaces atomic.Int64

func newSpace(t *testing.T, gateway bool) *space {
	t.Helper()
	s := &space{name: fmt.Sprintf("tghyg-%d-%d-gw", os.Getpid(), spaces.Add(1))}
	t.Cleanup(func() { s.remove(t) })
	sh(t, "ip netns add "+s.name)
	var err error
	if s.lock, err = os.Open("/run/netns/" + s.name); err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	sh(t, "ip -n "+s.name+" link set lo alias tapgate\\ lab") // so that the next run sweeps it if we are killed
	if gateway {
		for _, line := range []string{
			"link add eth3 index 13 type veth peer name peer3", "link add eth2 index 12 type veth peer name peer2",
			"addr add 192.168.4.1/24 dev eth2", "link set eth2 up", "link set eth3 up", "link set peer3 up", "link set peer2 up",
		} {
			sh(t, "ip -n "+s.name+" "+line)
		}
	}
	return s
}

// remove ends the namespace; again is fine.
func (s *space) remove(t *testing.T) {
	t.Helper()
	if s.lock != nil {
		s.lock.Close()
		s.lock = nil
		sh(t, "ip netns del "+s.name)
	}
}

func sh(t *testing.T, line string) {
	t.Helper()
	if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
}

// end runs a command to its end.
func (g *gateway) end(cmd *exec.Cmd) result {
	g.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		g.t.Fatalf("%q: %v", cmd.Args, err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// tapgateAt runs tapgate for another namespace than the lab's gateway.
func (g *gateway) tapgateAt(netns string, args ...string) result {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return g.end(exec.CommandContext(ctx, binary, append(args, "--netns", netns, "--bpffs", g.bpffs)...))
}

var attachSpace = []string{"attach", "--internal", "eth3", "--dmz", "eth2", "--sensor", "192.168.4.2"}

// The kernel gives a new namespace the number of one that is gone: the state
// by that number is then nobody's, and must not be taken for the new one's.
func TestHygieneStateOfANamespaceThatIsGone(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	for _, way := range []string{"apply", "detach"} {
		old := newSpace(t, true)
		if r := g.tapgateAt(old.name, attachSpace...); r.code != 0 {
			t.Fatal(r)
		}
		inode := inodeOf(t, "/run/netns/"+old.name)
		old.remove(t)
		// It is the next number or one of the next; but others make namespaces
		// as well, and then the folder is called as if it were.
		var next *space
		for range 30 {
			if next = newSpace(t, false); inodeOf(t, "/run/netns/"+next.name) == inode {
				break
			}
		}
		if now := inodeOf(t, "/run/netns/"+next.name); now != inode {
			t.Logf("number %d was not used again; the state is renamed", inode)
			root := filepath.Join(g.bpffs, "tapgate")
			if err := os.Rename(filepath.Join(root, strconv.FormatUint(inode, 10)), filepath.Join(root, strconv.FormatUint(now, 10))); err != nil {
				t.Fatal(err)
			}
		}
		for _, line := range []string{"link add eth3 index 13 type veth peer name peer3", "link add eth2 index 12 type veth peer name peer2", "addr add 192.168.4.1/24 dev eth2"} {
			sh(t, "ip -n "+next.name+" "+line)
		}
		for _, args := range [][]string{{"status"}, {"mirror", "list"}, {"mirror", "del", "ids"}} {
			if r := g.tapgateAt(next.name, args...); r.code != 3 || !strings.Contains(r.stderr, "left over from a network namespace that is gone") {
				t.Errorf("%q on state of a namespace that is gone: %s", args, r)
			}
		}
		switch way {
		case "apply":
			if r := g.tapgateAt(next.name, attachSpace...); r.code != 0 {
				t.Errorf("attach over state of a namespace that is gone: %s", r)
			}
			r := g.tapgateAt(next.name, "status")
			if r.code != 0 || !strings.Contains(r.stdout, "eth3") || !strings.Contains(r.stdout, "change 1,") || strings.Contains(r.stdout, "apply again") {
				t.Errorf("status after attach: %s", r)
			}
		case "detach":
		}
		if r := g.tapgateAt(next.name, "detach"); r.code != 0 || r.stdout == "" {
			t.Errorf("detach: %s", r)
		}
		g.nothingLeft()
	}
}

// Two gateways on one BPF filesystem, made and taken away at the same time,
// know nothing of each other.
func TestHygieneTwoGateways(t *testing.T) {
	t.Parallel()
	g := newGateway(t, lab.RoutedOutside())
	other := newSpace(t, true)
	for round := range 5 {
		both := func(first func(), second func()) {
			var wg sync.WaitGroup
			wg.Go(first)
			wg.Go(second)
			wg.Wait()
		}
		run := func(args ...string) func() {
			return func() {
				if r := g.tapgateAt(other.name, args...); r.code != 0 {
					t.Errorf("round %d: %q of the other gateway: %s", round, args, r)
				}
			}
		}
		both(func() {
			if r := g.tapgateIn(example, "apply", "-f", "-"); r.code != 0 {
				t.Errorf("round %d: %s", round, r)
			}
		}, run(attachSpace...))
		if round == 0 {
			g.resolved()
		}
		g.wantProblems()
		both(run("detach"), func() { g.tapgate("status") })
		if r := g.tapgateAt(other.name, "status"); r.code != 3 {
			t.Errorf("round %d: status of the gateway that was taken away: %s", round, r)
		}
		g.wantProblems()
		if round == 0 {
			g.copies("the other gateway was taken away")
		}
		run(attachSpace...)()
		both(run("detach"), func() {
			if r := g.tapgate("detach"); r.code != 0 {
				t.Errorf("round %d: %s", round, r)
			}
		})
		g.nothingLeft()
	}
}
