package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"tapgate/loader"
)

// agentFlags say what the agent does beside following.
type agentFlags struct {
	listen      string
	listenGiven bool
	listenGroup string
	logFlows    string
	measure     bool
	log         logFlags
}

func newAgentCommand(e *env, g *globals) *cobra.Command {
	f := &agentFlags{}
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Follow outside addresses and links, and serve metrics, until it is ended",
		Long: `Runs until SIGTERM or SIGINT and keeps what is in force true: an outside address
that changes is used at once, an interface that comes back, or is another one now,
gets its programs again within a fraction of a second, networks inside and the
addresses towards the sensor are followed, and a sensor that was replaced is found
within half a second. What somebody else has changed of what the gateway needs
(forwarding, connection tracking, the checksum offload towards the sensor, our
programs) is set back within 5 s, with a line in the log. Flows whose outside address
is lost go on if it comes back before another one does, or within a minute. It never
reads the configuration file. Traffic does not depend on it: whenever it ends, all
stays as it is. It logs to standard error.

It serves metrics for Prometheus at http://ADDR/metrics, in the network namespace
that it runs in, and at /healthz whether it works (200, or 503 and why it does not).
Everybody who may reach the address may read them, at loopback's everybody on the
machine: another one needs a firewall. At unix:PATH only root may, and the members of
--listen-group. It works with the programs and the state of its own build alone: where
those are another's it says so, and waits.

--log-flows writes the start and the end of every translation as a line of JSON,
and at its beginning those that are present. The programs themselves tell it of each,
however short. What comes faster than it can be written is counted, and a line
"lost" says how many are missing; so it is for an agent that was killed, by the
next one. SIGHUP opens the file anew, for logrotate, and looks at all interfaces at
once. A file that was removed is made anew.

It keeps only the capabilities that it needs: files must be root's to write.`,
		Example: `  tapgate agent
  tapgate agent --log-flows /var/log/tapgate/flows.json
  tapgate agent --listen 192.168.5.1:9435 --measure-programs
  tapgate agent --listen unix:/run/tapgate/metrics.sock --listen-group prometheus
  systemd-run --unit tapgate-agent -p Type=notify tapgate agent`,
		Args: noArgs,
		RunE: e.privileged(func(cmd *cobra.Command, _ []string) error {
			opt, err := g.options(false)
			if err != nil {
				return err
			}
			f.listenGiven = cmd.Flags().Changed("listen")
			if err := f.check(); err != nil {
				return err
			}
			log := slog.New(auditHandler{f.log.handler(e.stderr, g.verbose), func(line string) { e.auditAgent(opt, &loader.Result{Changes: []string{line}}, nil) }})
			if e.backend == nil { // never in a test's process
				if err := f.joinGroup(); err != nil {
					return err
				}
				if err := shedCapabilities(opt.Netns); err != nil {
					log.Warn("goes on with all its capabilities", "error", err)
				}
			}
			hup := make(chan os.Signal, 1)
			signal.Notify(hup, syscall.SIGHUP)
			defer signal.Stop(hup)
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return e.agent(ctx, hup, opt, f, log)
		}),
	}
	p := cmd.Flags()
	p.StringVar(&f.listen, "listen", defaultListen, "serve metrics at `ADDR:PORT` or unix:PATH; \"\" for not at all")
	p.StringVar(&f.listenGroup, "listen-group", "", "members of `GROUP` may read metrics at unix:PATH, not only root")
	p.StringVar(&f.logFlows, "log-flows", "", "write starts and ends of translations to `FILE`, \"-\" for standard output")
	p.StringVar(&f.log.format, "log-format", logText, "how lines of the log look: `FORMAT` text or json")
	p.StringVar(&f.log.level, "log-level", "info", "write lines of this `LEVEL` and above: debug, info, warn, error; -v is debug")
	p.BoolVar(&f.measure, "measure-programs", false, "have the kernel measure the time that programs take, which costs some")
	return cmd
}

// agent follows until ctx ends, which is no error. What else it does must not
// keep it from following.
func (e *env) agent(ctx context.Context, hup <-chan os.Signal, opt loader.Options, f *agentFlags, log *slog.Logger) (err error) {
	a := &agent{env: e, opt: opt, log: log, again: make(chan struct{}, 1), following: make(chan struct{}), notify: newNotifier(log)}
	if f.measure {
		closer, err := loader.MeasurePrograms()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, closer.Close()) }()
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	if f.logFlows != "" {
		if a.flows, err = openFlowLog(f.logFlows, e.stdout); err != nil {
			return err
		}
		running.Go(func() { a.logFlows(ctx) })
	}
	if f.listen != "" {
		err := a.serveMetrics(ctx, &running, f)
		if err != nil && f.listenGiven {
			return err
		}
		if err != nil { // maybe of another gateway's agent: not worth a gateway that nobody follows
			log.Warn("serves no metrics", "error", err)
		}
	}
	running.Go(func() { a.reload(ctx, hup) })
	err = e.loader().Follow(ctx, opt, loader.Follower{
		Log: log, Reapply: a.reapply, Looked: a.looked, Again: a.again, LogsFlows: f.logFlows != "",
	})
	a.notify.say("STOPPING=1")
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return nil
	}
	return err
}

// agent is one that runs.
type agent struct {
	env       *env
	opt       loader.Options
	log       *slog.Logger
	again     chan struct{}
	following chan struct{} // closed with the first look
	first     sync.Once
	health    health
	failed    string // what kept the last reapply from its work, for the records of changes
	notify    *notifier
	flows     *flowLog // nil: none
}

// looked is called every few seconds for as long as the agent works.
func (a *agent) looked(why error) {
	a.health.looked(why)
	a.first.Do(func() { close(a.following) })
	a.notify.working()
}

// reload does what SIGHUP asks for.
func (a *agent) reload(ctx context.Context, hup <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
		}
		a.log.Info("reloading")
		a.notify.reloading()
		select {
		case a.again <- struct{}{}:
		default: // it has not come to it since the last one
		}
		if a.flows != nil {
			a.reopenFlows(ctx)
		}
		a.notify.say("READY=1")
	}
}

// reopenFlows opens the log anew. A pipe whose reader hangs is not waited for: it keeps
// whoever writes into it, and must keep nobody else.
func (a *agent) reopenFlows(ctx context.Context) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.flowTrouble(a.flows.reopen())
	}()
	select {
	case <-done:
	case <-ctx.Done():
	case <-time.After(flowLogPatience):
		a.log.Warn("log of translations: it takes nothing more, and is opened anew when it does")
	}
}

// reapply puts the configuration in force in force again, on interfaces as they are now.
// It leaves a record; of a failure only the first, for it is tried again and again.
func (a *agent) reapply() error {
	result, err := a.env.reapply(a.opt, a.log)
	failed := fmt.Sprint(err)
	if err == nil || failed != a.failed && !errors.Is(err, loader.ErrBusy) {
		a.env.auditAgent(a.opt, result, err)
	}
	a.failed = failed
	return err
}

func (e *env) reapply(opt loader.Options, log *slog.Logger) (result *loader.Result, err error) {
	gw, err := e.loader().Open(opt, loader.ReadWrite)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, gw.Close()) }()
	doc, err := parseConfig("applied configuration", []byte(gw.Source()))
	if err != nil {
		return nil, fmt.Errorf("what is in force was applied by another tapgate: %v", err)
	}
	result, err = gw.Reapply(doc.Config)
	if result == nil || err != nil {
		return result, err
	}
	for _, w := range result.Warnings {
		log.Warn(w)
	}
	for _, c := range result.Changes {
		log.Info(c)
	}
	return result, nil
}

// readOnly runs f on the gateway, which is opened for it.
func (a *agent) readOnly(opt loader.Options, f func(gateway) error) error {
	gw, err := a.env.loader().Open(opt, loader.ReadOnly)
	if err != nil {
		return err
	}
	return errors.Join(f(gw), gw.Close())
}
