package jtoc

import (
	"errors"
	"io"
	"math"
)

// integer reads a number that must be a whole one of 64 bits.
func (l *lexer) integer() (int64, error) {
	c, err := l.need()
	if err != nil {
		return 0, err
	}
	negative := c == '-'
	if negative {
		l.pos++
	}
	var v uint64
	digits := 0
	for {
		if c, err = l.byteOrEnd(); err != nil {
			return 0, err
		}
		if c < '0' || c > '9' {
			break
		}
		if v > (math.MaxInt64-9)/10 || (digits > 0 && v == 0) {
			return 0, invalid("a number that is not canonical, or not of 64 bits")
		}
		v = v*10 + uint64(c-'0')
		digits++
		l.pos++
	}
	if digits == 0 || c == '.' || c == 'e' || c == 'E' {
		return 0, invalid("something else where a whole number belongs")
	}
	if negative {
		return -int64(v), nil
	}
	return int64(v), nil
}

// byteOrEnd looks at the next byte; 0 at the end.
func (l *lexer) byteOrEnd() (byte, error) {
	if l.pos == l.end {
		if err := l.more(l.pos); errors.Is(err, io.EOF) {
			return 0, nil
		} else if err != nil {
			return 0, err
		}
	}
	return l.buf[l.pos], nil
}

// null reads null where that comes next.
func (l *lexer) null() (bool, error) {
	c, err := l.need()
	if err != nil || c != 'n' {
		return false, err
	}
	return true, l.word("null")
}

func (l *lexer) word(want string) error {
	for i := range len(want) {
		c, err := l.byte()
		if err != nil {
			return err
		}
		if c != want[i] {
			return invalid("%q where %q belongs", c, want)
		}
	}
	return nil
}

// skip reads any value and forgets it.
func (l *lexer) skip(depth int) error {
	c, err := l.need()
	switch {
	case err != nil:
		return err
	case depth == 0:
		return invalid("values nested too deep")
	}
	switch c {
	case '"':
		_, err = l.str()
		return err
	case 't':
		return l.word("true")
	case 'f':
		return l.word("false")
	case 'n':
		return l.word("null")
	case '{':
		return l.object(func([]byte) error { return l.skip(depth - 1) })
	case '[':
		return l.array(func() error { return l.skip(depth - 1) })
	}
	return l.skipNumber()
}

// skipNumber reads a number of any form, which is not looked at closely: its
// value means nothing here.
func (l *lexer) skipNumber() error {
	for n := 0; ; n++ {
		c, err := l.byteOrEnd()
		if err != nil {
			return err
		}
		switch {
		case c >= '0' && c <= '9', c == '-', n > 0 && (c == '+' || c == '.' || c == 'e' || c == 'E'):
			l.pos++
		case n == 0:
			return invalid("%q where a value belongs", c)
		default:
			return nil
		}
	}
}

// object reads an object; member reads the value of each key. The key's bytes
// hold until the value is read.
func (l *lexer) object(member func(key []byte) error) error {
	if err := l.expect('{'); err != nil {
		return err
	}
	for first := true; ; first = false {
		more, err := l.next('}', first)
		if err != nil || !more {
			return err
		}
		key, err := l.str()
		if err != nil {
			return err
		}
		l.key = append(l.key[:0], key...) // the colon's reading may move it
		if err := l.expect(':'); err != nil {
			return err
		}
		if err := member(l.key); err != nil {
			return err
		}
	}
}

// array reads an array; element reads each value.
func (l *lexer) array(element func() error) error {
	if err := l.expect('['); err != nil {
		return err
	}
	for first := true; ; first = false {
		more, err := l.next(']', first)
		if err != nil || !more {
			return err
		}
		if err := element(); err != nil {
			return err
		}
	}
}
