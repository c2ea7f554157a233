package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tapgate/loader"
)

const (
	flowsEvery = time.Second
	// flowsShare is how much longer than a look the time between two looks is.
	flowsShare = 9
)

// flowLog writes events as lines of JSON.
type flowLog struct {
	path  string // "" for a stream that was given
	out   io.Writer
	close func() error
	torn  bool // a line may have been cut short: the disk was full

	lines  *prometheus.CounterVec
	errors prometheus.Counter
}

// flowMark is a line that is about the log itself: "begin" and "stop".
type flowMark struct {
	Time  time.Time `json:"time"`
	Event string    `json:"event"`
}

func openFlowLog(path string, stdout io.Writer) (*flowLog, error) {
	l := &flowLog{
		out: stdout, close: func() error { return nil },
		lines: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tapgate_flow_log_lines_total", Help: "Lines of the log of translations.",
		}, []string{"event"}),
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tapgate_flow_log_errors_total", Help: "Times that the log of translations could not be written or the flow table not be read.",
		}),
	}
	for _, event := range []string{"begin", "present", "start", "end", "stop"} {
		l.lines.WithLabelValues(event)
	}
	if path == "-" {
		return l, nil
	}
	l.path = path
	return l, l.reopen()
}

// reopen opens the file anew, since the old one may have another name now. When that
// fails it goes on with the old one.
func (l *flowLog) reopen() error {
	if l.path == "" {
		return nil
	}
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return fmt.Errorf("log of translations: %w", err)
	}
	err = l.close()
	l.out, l.close = f, f.Close
	return err
}

// write writes whole lines, at best in one piece.
func (l *flowLog) write(events []loader.TranslationEvent) error {
	return l.encode(func(line func(string, any) error) error {
		for i := range events {
			if err := line(events[i].Event, &events[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

func (l *flowLog) mark(event string) error {
	return l.encode(func(line func(string, any) error) error {
		return line(event, flowMark{time.Now().UTC().Round(time.Millisecond), event})
	})
}

func (l *flowLog) encode(each func(line func(event string, what any) error) error) error {
	buffered := bufio.NewWriterSize(l.out, 1<<16)
	if l.torn {
		_ = buffered.WriteByte('\n') // an error shows when it is flushed
	}
	var one bytes.Buffer
	enc := json.NewEncoder(&one)
	enc.SetEscapeHTML(false)
	err := each(func(event string, what any) error {
		one.Reset()
		if err := enc.Encode(what); err != nil {
			return err
		}
		l.lines.WithLabelValues(event).Inc()
		if buffered.Available() < one.Len() {
			if err := buffered.Flush(); err != nil {
				return err
			}
		}
		_, err := buffered.Write(one.Bytes())
		return err
	})
	err = errors.Join(err, buffered.Flush())
	l.torn = err != nil
	if err != nil {
		return fmt.Errorf("log of translations: %w", err)
	}
	return nil
}

// logFlows writes the log until ctx ends.
func (a *agent) logFlows(ctx context.Context) {
	seen := loader.NewTranslations()
	select {
	case <-a.following: // else this is a second agent, which is about to end
	case <-ctx.Done():
		return
	}
	told := ""
	trouble := func(err error) {
		if err == nil {
			return
		}
		a.flows.errors.Inc()
		if err.Error() != told {
			told = err.Error()
			a.log.Warn("log of translations: trying again later", "error", err)
		}
	}
	trouble(a.flows.mark("begin"))
	for {
		start := time.Now()
		events, err := a.translations(seen)
		if err == nil {
			err = a.flows.write(events)
		}
		if trouble(err); err == nil {
			told = ""
		}
		if ctx.Err() != nil {
			trouble(a.flows.mark("stop"))
			trouble(a.flows.close())
			return
		}
		wait := time.NewTimer(max(flowsEvery, flowsShare*time.Since(start)))
		select {
		case <-wait.C:
		case <-a.reopen:
			trouble(a.flows.reopen())
		case <-ctx.Done(): // one last look
		}
		wait.Stop()
	}
}

// translations is one look. Where there is no gateway any more, nothing is translated.
func (a *agent) translations(seen *loader.Translations) (events []loader.TranslationEvent, err error) {
	err = a.readOnly(a.opt, func(gw gateway) error {
		events, err = gw.Translations(seen)
		return err
	})
	if errors.Is(err, loader.ErrNotAttached) {
		return seen.Gone(), nil
	}
	return events, err
}
