package source_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/lacunafs/lacuna/internal/source"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestRedact(t *testing.T) {
	var out strings.Builder
	for _, url := range []string{
		"https://example.com/a/b.img",
		"https://example.com:8443/a%20b?version=3",
		"https://me:secret@example.com/a",
		"https://token@example.com/a#secret",
		"https://bucket.s3.amazonaws.com/k?X-Amz-Algorithm=AWS4&X-Amz-Credential=secret%2F1&X-Amz-Signature=secret",
		"https://x.blob.core.windows.net/c/b?sv=2024&se=2026-01-01&sr=b&sig=secret%3D",
		"https://example.com/a?secret",
		"https://example.com/a?secret&b=secret;c=secret",
		"https://example.com/a?=secret",
		"https://example.com/a?b=secret=secret",
		"https://example.com/a?",
		"https://me:sec/ret@example.com/a",
		"https://example.com/%zz?sig=secret",
		"mailto:secret",
		"",
	} {
		redacted := source.Redact(url)
		if strings.Contains(redacted, "secret") || strings.Contains(redacted, "sec/ret") || strings.Contains(redacted, "token") {
			t.Errorf("%s shows as %s", url, redacted)
		}
		fmt.Fprintf(&out, "%s\n  %s\n", url, redacted)
	}
	const golden = "testdata/redact.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(out.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if out.String() != string(want) {
		t.Errorf("differs from %s (-update rewrites it):\n%s", golden, out.String())
	}
}

func TestExact(t *testing.T) {
	for name, wrap := range map[string]func(io.Reader) io.Reader{
		"plain": func(r io.Reader) io.Reader { return r }, "one byte": iotest.OneByteReader, "data and EOF": iotest.DataErrReader,
	} {
		for length := range 5 {
			r := source.Exact(t.Context(), io.NopCloser(wrap(strings.NewReader("abcd"[:length]))), 3)
			got, err := io.ReadAll(r)
			var short *source.ShortError
			switch {
			case string(got) != "abcd"[:min(length, 3)]:
				t.Errorf("%s, %d bytes: got %q", name, length, got)
			case length >= 3 && err != nil:
				t.Errorf("%s, %d bytes: %v", name, length, err)
			case length < 3 && (!errors.As(err, &short) || *short != source.ShortError{Got: int64(length), Want: 3} ||
				!errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || !source.Temporary(err)):
				t.Errorf("%s, %d bytes: %v", name, length, err)
			}
		}
	}
}

func TestExactIsFinal(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r := source.Exact(ctx, io.NopCloser(bytes.NewReader(make([]byte, 10))), 10)
	cancel()
	for range 2 {
		if _, err := r.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	}
	for range 2 {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	broken := source.Exact(t.Context(), io.NopCloser(iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader("abc")))), 3)
	if _, err := io.ReadAll(broken); !errors.Is(err, iotest.ErrTimeout) {
		t.Errorf("broken: %v", err)
	}
	if _, err := broken.Read(make([]byte, 1)); !errors.Is(err, iotest.ErrTimeout) {
		t.Errorf("after the error: %v", err)
	}
}

func TestTemporary(t *testing.T) {
	for err, want := range map[error]bool{
		nil: false, io.EOF: false, context.DeadlineExceeded: false, context.Canceled: false,
		fmt.Errorf("read: %w", context.DeadlineExceeded): false,
		fmt.Errorf("read: %w", &source.ShortError{}):     true,
	} {
		if source.Temporary(err) != want {
			t.Errorf("%v: %v", err, !want)
		}
	}
}
