package main

import (
	"io"
	"log/slog"
	"strings"
)

// Values of --log-format.
const (
	logText = "text"
	logJSON = "json"
)

// logFlags say how the agent logs.
type logFlags struct {
	format string
	level  string
}

func (f *logFlags) check() error {
	if f.format != logText && f.format != logJSON {
		return usagef("--log-format %q: it is %s or %s", f.format, logText, logJSON)
	}
	if _, err := f.atLeast(); err != nil {
		return usagef("--log-level %q: it is debug, info, warn or error", f.level)
	}
	return nil
}

// atLeast is the level from which on lines are written.
func (f *logFlags) atLeast() (level slog.Level, err error) {
	if strings.ContainsAny(f.level, "+-") { // slog knows levels between the four
		f = &logFlags{level: ""}
	}
	return level, level.UnmarshalText([]byte(f.level))
}

// handler writes lines to w; verbose asks for all of them.
func (f *logFlags) handler(w io.Writer, verbose bool) slog.Handler {
	level, _ := f.atLeast() // checked
	if verbose {
		level = slog.LevelDebug
	}
	opt := &slog.HandlerOptions{Level: level}
	if f.format == logJSON {
		return slog.NewJSONHandler(w, opt)
	}
	return slog.NewTextHandler(w, opt)
}
