package daemon

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

// stuckWriter writes a line for each token.
type stuckWriter struct {
	tokens chan struct{}
	bytes.Buffer
}

func (w *stuckWriter) Write(p []byte) (int, error) {
	<-w.tokens
	return w.Buffer.Write(p)
}

func TestLogQueueNeverWaitsAndCountsWhatItDrops(t *testing.T) {
	out := &stuckWriter{tokens: make(chan struct{})}
	q := NewLogQueue(out, func(out io.Writer, lines int) {
		if _, err := fmt.Fprintf(out, "%d dropped\n", lines); err != nil {
			t.Error(err)
		}
	})
	line := append(bytes.Repeat([]byte("x"), 1023), '\n')
	const lines = 2 * maxQueued / 1024
	for range lines { // nothing is written meanwhile
		if n, err := q.Write(line); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
	}
	close(out.tokens)
	q.Close(10 * time.Second)
	text := out.String()
	dropped := 0
	for l := range strings.Lines(text) {
		var n int
		if _, err := fmt.Sscanf(l, "%d dropped", &n); err == nil {
			dropped += n
		}
	}
	if written := strings.Count(text, string(line)); written+dropped != lines || dropped == 0 || written*1024 > maxQueued+1024 {
		t.Errorf("%d written, %d dropped, of %d", written, dropped, lines)
	}
}

func TestLogQueueIsClosedWhileNobodyReads(t *testing.T) {
	out := &stuckWriter{tokens: make(chan struct{})}
	q := NewLogQueue(out, func(io.Writer, int) {})
	if _, err := q.Write([]byte("line\n")); err != nil {
		t.Fatal(err)
	}
	q.Close(time.Millisecond)
	close(out.tokens)
	q.Close(10 * time.Second)
	if out.String() != "line\n" {
		t.Errorf("written: %q", out.String())
	}
}
