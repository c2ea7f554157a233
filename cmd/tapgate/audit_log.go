package main

import (
	"context"
	"log/slog"
	"log/syslog"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/journal"

	"tapgate/loader"
)

// auditPatience is how long a record may take to be taken. A journal that hangs must
// not keep a change from ending.
const auditPatience = 2 * time.Second

// systemLog writes a record to systemd's journal, else to the syslog, else nowhere.
// What goes wrong with it is no reason for a command to fail.
func systemLog(r auditRecord) {
	written := make(chan struct{})
	go func() {
		defer close(written)
		if !journal.Enabled() || toJournal(r) != nil {
			toSyslog(r)
		}
	}()
	select {
	case <-written:
	case <-time.After(auditPatience):
	}
}

func toJournal(r auditRecord) error {
	fields := map[string]string{
		"MESSAGE_ID": auditID, "SYSLOG_IDENTIFIER": "tapgate", "SYSLOG_FACILITY": "10", // authpriv, as sudo's
	}
	for _, f := range r.facts() {
		fields["TAPGATE_"+f[0]] = f[1]
	}
	priority := journal.PriNotice
	if r.err != nil {
		priority = journal.PriWarning
	}
	return journal.Send(r.text(), priority, fields)
}

func toSyslog(r auditRecord) {
	w, err := syslog.New(syslog.LOG_AUTHPRIV|syslog.LOG_NOTICE, "tapgate")
	if err != nil {
		return
	}
	defer w.Close()
	text := r.text()
	for _, f := range r.facts() {
		if f[0] != "CHANGES" && f[0] != "WARNINGS" && f[0] != "ERROR" { // stand in the text, or are too long
			text += " " + strings.ToLower(f[0]) + "=" + commandLine([]string{f[1]})[len("tapgate "):]
		}
	}
	if r.err != nil {
		_ = w.Warning(text)
	} else {
		_ = w.Notice(text)
	}
}

// auditHandler also records those lines of the agent's log that tell of a change: the
// loader marks them with loader.Changed.
type auditHandler struct {
	slog.Handler
	record func(line string)
}

func (h auditHandler) Handle(ctx context.Context, r slog.Record) error {
	line, changed := r.Message, false
	r.Attrs(func(a slog.Attr) bool {
		if a.Equal(loader.Changed) {
			changed = true
		} else {
			line += " " + a.String()
		}
		return true
	})
	if changed {
		h.record(line)
	}
	if !h.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

// Enabled: what the log leaves out is recorded all the same.
func (h auditHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo || h.Handler.Enabled(ctx, level)
}

func (h auditHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return auditHandler{h.Handler.WithAttrs(attrs), h.record}
}

func (h auditHandler) WithGroup(name string) slog.Handler {
	return auditHandler{h.Handler.WithGroup(name), h.record}
}
