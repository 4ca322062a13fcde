package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// plainLog is the log of a foreground command: what its user should know, in
// the form of the command line's other messages, without times and levels.
type plainLog struct {
	mu    *sync.Mutex
	out   io.Writer
	attrs []slog.Attr
}

func newPlainLog(out io.Writer) *plainLog { return &plainLog{mu: new(sync.Mutex), out: out} }

// Enabled is true from warnings on.
func (*plainLog) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }

// Handle writes one line: "note: " or "error: ", the message and its attributes.
func (p *plainLog) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString("note: ")
	if r.Level >= slog.LevelError {
		b.Reset()
		b.WriteString("error: ")
	}
	b.WriteString(r.Message)
	sep, hint := ": ", ""
	attr := func(a slog.Attr) bool {
		if a.Key == "hint" {
			hint = "hint: " + a.Value.String() + "\n"
			return true
		}
		value := strings.ReplaceAll(a.Value.String(), "\n", "; ")
		switch a.Value.Kind() {
		case slog.KindDuration:
			value = a.Value.Duration().Round(time.Millisecond).String()
		case slog.KindTime:
			value = a.Value.Time().Local().Format(time.RFC3339)
		}
		switch a.Key {
		case "err", "path", "file", "dir": // which speak for themselves
			fmt.Fprintf(&b, "%s%s", sep, value)
		case "users":
			fmt.Fprintf(&b, "%sused by %s", sep, value)
		default:
			fmt.Fprintf(&b, "%s%s %s", sep, a.Key, value)
		}
		sep = ", "
		return true
	}
	for _, a := range p.attrs {
		attr(a)
	}
	r.Attrs(attr)
	b.WriteString("\n" + hint)
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err := io.WriteString(p.out, b.String())
	return err
}

// WithAttrs adds attributes to each line.
func (p *plainLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &plainLog{mu: p.mu, out: p.out, attrs: append(p.attrs[:len(p.attrs):len(p.attrs)], attrs...)}
}

// WithGroup is not used.
func (p *plainLog) WithGroup(string) slog.Handler { return p }
