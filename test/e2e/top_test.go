package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// terminal is a tmux of the test's own with one window of 80 by 24.
type terminal struct {
	t      *testing.T
	socket string
}

func newTerminal(t *testing.T, command ...string) *terminal {
	t.Helper()
	term := &terminal{t, filepath.Join(t.TempDir(), "tmux")}
	term.tmux(append([]string{"-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24"}, command...)...)
	t.Cleanup(func() { _ = exec.Command("tmux", "-S", term.socket, "kill-server").Run() })
	return term
}

func (term *terminal) tmux(args ...string) string {
	term.t.Helper()
	cmd := exec.Command("tmux", append([]string{"-S", term.socket}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TERM=xterm-256color")
	out, err := cmd.CombinedOutput()
	if err != nil {
		term.t.Fatalf("tmux %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (term *terminal) screen() string { return term.tmux("capture-pane", "-p") }

// shows waits until the screen does.
func (term *terminal) shows(pattern string) string {
	term.t.Helper()
	is, screen := regexp.MustCompile("(?m)"+pattern), ""
	retry(term.t, func() error {
		if screen = term.screen(); !is.MatchString(screen) {
			return fmt.Errorf("%s is not on the screen:\n%s", pattern, screen)
		}
		return nil
	})
	return screen
}

// top in a real terminal: rates of interfaces, mirrors and flows while packets flow,
// keys, and a terminal that is as it was when it ends.
func TestTop(t *testing.T) {
	t.Parallel()
	g := newGate(t, metricsConfig)
	in, out := g.station(atInside, 0), g.station(atOutside, 0)
	s := g.connect(in, 6000, out, 80, false)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			in.tcp(s.a.Port(), s.b, 0x18, s.inSeq, s.ouSeq, strings.Repeat("x", 900))
			time.Sleep(time.Millisecond)
		}
	}()
	defer func() { stop(); <-done }()

	term := newTerminal(t, "sh", "-c", fmt.Sprintf(`echo before; was=$(stty -g)
'%s' top --netns %s --bpffs '%s' --interval 300ms; echo ended $?
[ "$(stty -g)" = "$was" ] && echo as it was; sleep 1000`, binary, g.Gateway.Name, g.bpffs))
	rate := `[0-9.]*[1-9][0-9.]*[kM]?`
	term.shows(`^interface +zone +in pkt/s +bit/s +out pkt/s +bit/s +drop/s$`)
	term.shows(`^eth3 +internal +` + rate + ` +` + rate)
	term.shows(`^ids \(internal\) +` + rate + ` +` + rate + ` +` + rate + ` +0 +0$`)
	screen := term.shows(`^tcp 192\.168\.3\.\d+:6000 > 203\.0\.113\.\d+:80 +` + rate + ` +` + rate + ` +` + rate)
	for line := range strings.Lines(screen) {
		if utf8.RuneCountInString(strings.TrimRight(line, "\n")) > 80 {
			t.Errorf("over 80 columns: %s", line)
		}
	}
	t.Logf("the screen:\n%s", screen)
	term.shows(`^flows by bytes a second`)
	term.tmux("send-keys", "s")
	term.shows(`^flows by packets a second`)
	term.tmux("send-keys", "s", "s", "s")
	term.shows(`^flows by bytes a second`)
	term.tmux("send-keys", "p")
	still := term.shows(`PAUSED`)
	time.Sleep(time.Second)
	if now := term.screen(); now != still {
		t.Errorf("paused, and yet it changed:\n%s\n%s", still, now)
	}
	term.tmux("send-keys", " ", "+")
	term.shows(`^tapgate top .* every 600ms$`)
	term.tmux("resize-window", "-x", "60", "-y", "12")
	term.shows(`^s sort  p pause`)
	term.tmux("send-keys", "q")
	screen = term.shows(`^ended 0$`)
	if !strings.Contains(screen, "before\n") {
		t.Errorf("the screen from before is gone:\n%s", screen)
	}
	term.shows(`^as it was$`)

	// Detached while it runs it says so, and shows more once there is something.
	term = newTerminal(t, binary, "top", "--netns", g.Gateway.Name, "--bpffs", g.bpffs, "--interval", "200ms")
	term.shows(`^eth3 `)
	g.must("detach")
	term.shows(`^not now: .*`)
	g.apply(metricsConfig)
	retry(t, func() error {
		if strings.Contains(term.screen(), "not now") {
			return errors.New("it does not find the gateway again")
		}
		return nil
	})
	term.tmux("send-keys", "C-c")

	// Without a terminal it prints.
	r := g.must("top", "--batch", "2", "--interval", "300ms")
	if strings.Count(r.stdout, "tapgate top") != 2 || strings.Count(r.stdout, "\neth3 ") != 2 || strings.ContainsAny(r.stdout, "\x1b\x00\r") {
		t.Errorf("batch: %s", r)
	}
	if r := g.must("top", "--once", "--interval", "200ms"); strings.Count(r.stdout, "tapgate top") != 1 {
		t.Errorf("once: %s", r)
	}
	for args, want := range map[string]string{
		"top":                          "needs a terminal; --once or --batch",
		"top --batch 0":                "--batch 0: must be above zero",
		"top --once --interval 1ms":    "--interval 1ms: must be from",
		"top --once --sort weight":     `--sort "weight": must be one of bytes, packets`,
		"top --once --batch 3":         "[batch once]",
		"top --once --interval 1000ms": "",
	} {
		r := g.tapgate(words(args)...)
		if want != "" && (r.code != 2 || !strings.Contains(r.stderr, want)) || want == "" && r.code != 0 {
			t.Errorf("%s: %s", args, r)
		}
	}
}
