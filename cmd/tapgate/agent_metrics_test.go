package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"tapgate/loader"
)

// lockedBuffer is written by the agent and read by the test.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func fetch(t *testing.T, url string) (code int, body string) {
	t.Helper()
	answer, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(raw)
}

// Metrics tell of a status that cannot be read and keep the rest; health is whether
// the agent looks.
func TestAgentServes(t *testing.T) {
	var stderr lockedBuffer
	f := &fake{status: exampleStatus()}
	f.follow = func(context.Context, *slog.Logger, func() error) error {
		url := regexp.MustCompile(`url=(\S+)/metrics`).FindStringSubmatch(stderr.String())
		if url == nil {
			t.Fatalf("no address in the log: %s", stderr.String())
		}
		if code, body := fetch(t, url[1]+"/healthz"); code != http.StatusServiceUnavailable || body == "" {
			t.Errorf("before the first look: %d %s", code, body)
		}
		if code, body := fetch(t, url[1]+"/metrics"); code != http.StatusOK || !strings.Contains(body, "\ntapgate_attached 1\n") || !strings.Contains(body, "\ntapgate_agent_last_look_timestamp_seconds 0\n") {
			t.Errorf("%d\n%s", code, body)
		}
		for _, c := range []struct {
			why  error
			code int
			body string
		}{{nil, 200, "ok\n"}, {errors.New("of another build"), 503, "of another build\n"}, {fmt.Errorf("%w: pid 7", loader.ErrBusy), 200, "ok\n"}} {
			f.hooks.Looked(c.why)
			if code, body := fetch(t, url[1]+"/healthz"); code != c.code || body != c.body {
				t.Errorf("after a look, %v: %d %s", c.why, code, body)
			}
		}
		if f.opt.LockTimeout != metricsWait {
			t.Errorf("metrics wait %v for a lock", f.opt.LockTimeout)
		}
		f.err = errors.New("the state is broken")
		if code, body := fetch(t, url[1]+"/metrics"); code != http.StatusOK || strings.Contains(body, "tapgate_attached") || !strings.Contains(body, "\ntapgate_build_info{") ||
			!strings.Contains(body, "tapgate_agent_last_look_timestamp_seconds 1.") {
			t.Errorf("a broken state: %d\n%s", code, body)
		}
		if code, _ := fetch(t, url[1]+"/"); code != http.StatusNotFound {
			t.Errorf("/: %d", code)
		}
		return nil
	}
	e := &env{stdin: strings.NewReader(""), stdout: io.Discard, stderr: &stderr, backend: f, missingCaps: func() []string { return nil }}
	if err := run(e, []string{"agent", "--listen", "127.0.0.1:0"}); err != nil {
		t.Error(err)
	}
	if !strings.Contains(stderr.String(), "the state is broken") {
		t.Errorf("not in the log:\n%s", stderr.String())
	}
	for _, bad := range []string{"127.0.0.1", ":", "9435", "[::1]"} {
		if got := call(&fake{}, "", "agent", "--listen", bad); got.code != exitUsage || !strings.Contains(got.errs, "must be ADDR:PORT") {
			t.Errorf("--listen %s: %+v", bad, got)
		}
	}
}

func TestHealth(t *testing.T) {
	var h health
	if h.ill() == nil {
		t.Error("it has never looked")
	}
	h.looked(nil)
	if err := h.ill(); err != nil || h.well.Load() == 0 {
		t.Errorf("it has just looked: %v", err)
	}
	well := h.well.Load()
	if h.looked(errors.New("x")); h.ill() == nil || h.well.Load() != well {
		t.Error("something keeps it from its work")
	}
	h.last.Store(time.Now().Add(-healthyFor - time.Second).UnixNano())
	if h.ill() == nil {
		t.Error("it has not looked for long")
	}
}
