package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"tapgate/loader"
)

const (
	defaultListen = "127.0.0.1:9435"
	// metricsWait is how long a reading of metrics waits for a change that is under way.
	metricsWait = 3 * time.Second
	// healthyFor is how long after its last look the agent is thought to work.
	healthyFor = 30 * time.Second
)

func (f *agentFlags) check() error {
	socket, err := f.socket()
	if err != nil {
		return err
	}
	if f.listen != "" && socket == nil {
		if _, port, err := net.SplitHostPort(f.listen); err != nil || port == "" {
			return usagef("--listen %q: must be ADDR:PORT, as %s, %sPATH, or \"\" for no metrics", f.listen, defaultListen, socketPrefix)
		}
	}
	return f.log.check()
}

// health is when the agent has looked last, and what keeps it from its work.
type health struct {
	last atomic.Int64          // ns since 1970, 0 for never
	well atomic.Int64          // the last one that nothing kept from its work
	why  atomic.Pointer[error] // of nil if that was the last one
}

func (h *health) looked(why error) {
	if errors.Is(why, loader.ErrBusy) { // a change that is under way, after which it goes on
		why = nil
	}
	now := time.Now().UnixNano()
	h.why.Store(&why)
	h.last.Store(now)
	if why == nil {
		h.well.Store(now)
	}
}

// ill is what keeps it from its work, nil if nothing does.
func (h *health) ill() error {
	if time.Since(time.Unix(0, h.last.Load())) >= healthyFor {
		return errors.New("the agent has not looked for some time")
	}
	return *h.why.Load()
}

// open opens what metrics are served at.
func (f *agentFlags) open() (net.Listener, error) {
	unixSocket, err := f.socket()
	switch {
	case err != nil:
		return nil, err
	case unixSocket != nil:
		return unixSocket.listen()
	}
	l, err := net.Listen("tcp", f.listen)
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", f.listen, err)
	}
	return l, nil
}

// serveMetrics serves until ctx ends.
func (a *agent) serveMetrics(ctx context.Context, running *sync.WaitGroup, f *agentFlags) error {
	socket, err := f.open()
	if err != nil {
		return err
	}
	errorLog := slog.NewLogLogger(a.log.Handler(), slog.LevelWarn)
	registry := a.registry()
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog: errorLog, ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4, Registry: registry,
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if err := a.health.ill(); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, err)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	server := &http.Server{
		Handler: mux, ErrorLog: errorLog,
		ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 1 << 16,
	}
	if addr := socket.Addr(); addr.Network() == "unix" {
		a.log.Info("serving metrics", "socket", addr.String())
	} else {
		a.log.Info("serving metrics", "url", "http://"+addr.String()+"/metrics")
	}
	running.Go(func() {
		if err := server.Serve(socket); !errors.Is(err, http.ErrServerClosed) {
			a.log.Warn("serves no metrics any more", "error", err)
		}
	})
	running.Go(func() {
		<-ctx.Done()
		server.Close()
	})
	return nil
}

// registry holds all metrics of an agent; scripts/monitoring/metrics.md lists them.
func (a *agent) registry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	v := versionOf(info)
	gauge := func(name, help string, value func() float64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "tapgate_build_info", Help: "The tapgate that runs as agent.",
		ConstLabels: prometheus.Labels{"version": v.Version, "revision": v.Revision, "goversion": v.Go, "layout": strconv.Itoa(v.Layout)},
	})
	build.Set(1)
	r.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	gauge("tapgate_agent_last_look_timestamp_seconds", "When the agent has looked last whether all is as it shall be, and nothing kept it from its work.", func() float64 {
		return float64(a.health.well.Load()) / 1e9
	})
	if a.flows != nil {
		r.MustRegister(a.flows.lines, a.flows.lost, a.flows.errors)
	}
	r.MustRegister(loader.NewCollector(func() (s *loader.Status, err error) {
		opt := a.opt
		opt.LockTimeout = min(opt.LockTimeout, metricsWait)
		err = a.readOnly(opt, func(gw gateway) error {
			s, err = gw.Status()
			return err
		})
		return s, err
	}))
	return r
}
