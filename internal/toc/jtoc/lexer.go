package jtoc

import (
	"errors"
	"fmt"
	"io"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/lacunafs/lacuna/internal/toc"
)

// Limits of the JSON text itself.
const (
	maxString = 1 << 20 // an extended attribute of 64 KiB in base64 has room
	maxDepth  = 32      // of values that are skipped
)

// lexer reads strict JSON (RFC 8259) piece by piece, from a buffer that holds
// little more than the token in hand. Strings may hold bytes that are not UTF-8: names
// of files are any bytes, and some writers put them in as they are.
type lexer struct {
	r        io.Reader
	buf      []byte
	pos, end int
	left     int64  // of what may be read
	text     []byte // a string that had escapes
	key      []byte // of the object's member in hand
}

func newLexer(r io.Reader, limit int64) *lexer {
	return &lexer{r: r, buf: make([]byte, 64<<10), left: limit}
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("table of contents: "+format+": %w", append(args, toc.ErrInvalid)...)
}

// more reads on. What lies in the buffer from keep on moves to its start.
func (l *lexer) more(keep int) error {
	if keep > 0 {
		l.end = copy(l.buf, l.buf[keep:l.end])
		l.pos -= keep
	} else if l.end == len(l.buf) {
		if len(l.buf) > maxString {
			return fmt.Errorf("table of contents: string of more than %d bytes: %w", maxString, toc.ErrLimit)
		}
		l.buf = append(l.buf, make([]byte, len(l.buf))...)
	}
	for range 100 {
		if l.left <= 0 {
			return fmt.Errorf("table of contents of more than %d bytes: %w", int64(toc.MaxJSON), toc.ErrLimit)
		}
		room := l.buf[l.end:]
		n, err := l.r.Read(room[:min(int64(len(room)), l.left)])
		l.end += n
		l.left -= int64(n)
		switch {
		case n > 0:
			return nil // an error comes again
		case errors.Is(err, io.EOF):
			return io.EOF
		case err != nil:
			return fmt.Errorf("read table of contents: %w", err)
		}
	}
	return fmt.Errorf("read table of contents: %w", io.ErrNoProgress)
}

// peek is the next byte that is not white space; io.EOF where there is none.
func (l *lexer) peek() (byte, error) {
	if l.pos < l.end && l.buf[l.pos] > ' ' {
		return l.buf[l.pos], nil
	}
	for {
		for l.pos < l.end {
			switch c := l.buf[l.pos]; c {
			case ' ', '\t', '\n', '\r':
				l.pos++
			default:
				return c, nil
			}
		}
		if err := l.more(l.pos); err != nil {
			return 0, err
		}
	}
}

// need is peek where the text must not end.
func (l *lexer) need() (byte, error) {
	c, err := l.peek()
	if err != nil {
		err = early(err)
	}
	return c, err
}

func (l *lexer) expect(want byte) error {
	c, err := l.need()
	if err != nil {
		return err
	}
	if c != want {
		return invalid("%q where %q belongs", c, want)
	}
	l.pos++
	return nil
}

// next goes on in an object or array that ends with closing: it is true at a
// further member. first says whether none was read yet.
func (l *lexer) next(closing byte, first bool) (bool, error) {
	c, err := l.need()
	switch {
	case err != nil:
		return false, err
	case c == closing:
		l.pos++
		return false, nil
	case first:
		return true, nil
	}
	if err := l.expect(','); err != nil {
		return false, err
	}
	if c, err = l.need(); err == nil && c == closing {
		err = invalid("%q after a comma", c)
	}
	return true, err
}

// str reads a string. The slice holds until the next call.
func (l *lexer) str() ([]byte, error) {
	if err := l.expect('"'); err != nil {
		return nil, err
	}
	start := l.pos
	for i := start; ; i++ {
		if i == l.end {
			l.pos = i
			if err := l.more(start); err != nil {
				return nil, early(err)
			}
			start, i = 0, l.pos
		}
		switch c := l.buf[i]; {
		case c == '"':
			l.pos = i + 1
			return l.buf[start:i], nil
		case c == '\\':
			l.text = append(l.text[:0], l.buf[start:i]...)
			l.pos = i
			return l.escaped()
		case c < ' ':
			return nil, invalid("control character %#x in a string", c)
		}
	}
}

func early(err error) error {
	if errors.Is(err, io.EOF) {
		return invalid("it ends too early")
	}
	return err
}

// byte is the next byte whatever it is.
func (l *lexer) byte() (byte, error) {
	if l.pos == l.end {
		if err := l.more(l.pos); err != nil {
			return 0, early(err)
		}
	}
	l.pos++
	return l.buf[l.pos-1], nil
}

// escaped reads the rest of a string from its first backslash on.
func (l *lexer) escaped() ([]byte, error) {
	for len(l.text) <= maxString {
		c, err := l.byte()
		switch {
		case err != nil:
			return nil, err
		case c == '"':
			return l.text, nil
		case c < ' ':
			return nil, invalid("control character %#x in a string", c)
		case c != '\\':
			l.text = append(l.text, c)
			continue
		}
		if c, err = l.byte(); err != nil {
			return nil, err
		}
		switch c {
		case '"', '\\', '/':
			l.text = append(l.text, c)
		case 'b', 'f', 'n', 'r', 't':
			l.text = append(l.text, map[byte]byte{'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}[c])
		case 'u':
			err = l.unicode()
		default:
			err = invalid("escape %q in a string", c)
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("table of contents: string of more than %d bytes: %w", maxString, toc.ErrLimit)
}

// unicode reads what follows \u. Halves of surrogate pairs must come as pairs.
func (l *lexer) unicode() error {
	r, err := l.hex4()
	if err != nil {
		return err
	}
	if utf16.IsSurrogate(r) {
		for _, want := range []byte(`\u`) {
			if c, err := l.byte(); err != nil || c != want {
				return errors.Join(err, invalid("half a surrogate pair"))
			}
		}
		low, err := l.hex4()
		if err != nil {
			return err
		}
		if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
			return invalid("half a surrogate pair")
		}
	}
	l.text = utf8.AppendRune(l.text, r)
	return nil
}

func (l *lexer) hex4() (r rune, err error) {
	for range 4 {
		c, err := l.byte()
		if err != nil {
			return 0, err
		}
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, invalid("%q in a \\u escape", c)
		}
		r = r<<4 | rune(c)
	}
	return r, nil
}

// drained reads to the end, where only white space may come.
func (l *lexer) drained() error {
	c, err := l.peek()
	if err == nil {
		return invalid("%q after its end", c)
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
