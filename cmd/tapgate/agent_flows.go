package main

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tapgate/loader"
)

// Why an event is not in the log.
const (
	lostBehind    = "behind"    // the agent did not keep up, or there was none
	lostUnwritten = "unwritten" // the file could not be written
)

// flowMark is a line that is about the log itself: "begin" and "stop".
type flowMark struct {
	Time  time.Time `json:"time"`
	Event string    `json:"event"`
}

// flowLoss is a line about those that are missing.
type flowLoss struct {
	flowMark
	Reason string `json:"reason"`
	Count  uint64 `json:"count"`
	// Starts and Ends are those of the count, where that is known.
	Starts uint64 `json:"starts,omitempty"`
	Ends   uint64 `json:"ends,omitempty"`
}

func markNow(event string) flowMark {
	return flowMark{time.Now().UTC().Round(time.Millisecond), event}
}

// makeMetrics makes those that are told in scripts/monitoring/metrics.md.
func (l *flowLog) makeMetrics() {
	l.lines = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tapgate_flow_log_lines_total", Help: "Lines of the log of translations.",
	}, []string{"event"})
	l.lost = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tapgate_flow_log_lost_total", Help: "Starts and ends of translations that are missing in the log, which says so.",
	}, []string{"reason"})
	l.errors = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "tapgate_flow_log_errors_total", Help: "Times that the log of translations could not be written or the flow table not be read.",
	})
	for _, event := range []string{"begin", "present", "start", "end", "lost", "stop"} {
		l.lines.WithLabelValues(event)
	}
	for _, reason := range []string{lostBehind, lostUnwritten} {
		l.lost.WithLabelValues(reason)
	}
}

// tell writes news, and how much is missing behind them.
func (l *flowLog) tell(news loader.TranslationNews) error {
	lines := make([]flowLine, 0, len(news.Events)+1)
	for i := range news.Events {
		lines = append(lines, flowLine{news.Events[i].Event, 1, &news.Events[i]})
	}
	if n := news.LostStarts + news.LostEnds; n > 0 {
		l.lost.WithLabelValues(lostBehind).Add(float64(n))
		lines = append(lines, flowLine{"lost", n, flowLoss{markNow("lost"), lostBehind, n, news.LostStarts, news.LostEnds}})
	}
	return l.write(lines...)
}

func (l *flowLog) mark(event string) error { return l.write(flowLine{event, 0, markNow(event)}) }

// flowLogPatience is how long an agent that ends waits for whoever takes its log.
const flowLogPatience = 5 * time.Second

// logFlows writes the log until ctx ends. A pipe whose reader hangs must not keep the
// agent from ending.
func (a *agent) logFlows(ctx context.Context) {
	written := make(chan struct{})
	go func() {
		defer close(written)
		a.writeFlows(ctx)
	}()
	<-ctx.Done()
	select {
	case <-written:
	case <-time.After(flowLogPatience):
		a.log.Warn("log of translations: it takes nothing more, so its last lines are lost", "waited", flowLogPatience)
	}
}

func (a *agent) writeFlows(ctx context.Context) {
	select {
	case <-a.following: // else this is a second agent, which is about to end
	case <-ctx.Done():
		return
	}
	a.flowTrouble(a.flows.mark("begin"))
	a.env.loader().FollowTranslations(ctx, a.opt, func(news loader.TranslationNews) { a.flowTrouble(a.flows.tell(news)) }, a.flowTrouble)
	a.flowTrouble(a.flows.mark("stop"))
	if n := a.flows.missing(); n > 0 { // no later line can say so
		a.log.Warn("log of translations: events are missing at its end", "count", n)
	}
	a.flowTrouble(a.flows.close())
}

// flowTrouble counts what goes wrong, and logs it unless it is what went wrong before.
func (a *agent) flowTrouble(err error) {
	if err == nil {
		return
	}
	a.flows.errors.Inc()
	if text := err.Error(); a.flows.news(text) {
		a.log.Warn("log of translations: trying again later", "error", text)
	}
}
