package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes, never negative when parsed. Its text is a whole
// number and a binary unit: 64MiB.
type Size int64

// Units of Size.
const (
	KiB Size = 1 << (10 * (iota + 1))
	MiB
	GiB
	TiB
)

type unit struct {
	name string
	size Size
}

// units are the units of Size, largest first; the last one is written as nothing, too.
func units() []unit {
	return []unit{{"TiB", TiB}, {"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB}, {"B", 1}}
}

// ParseSize reads a whole number with one of the units B, KiB, MiB, GiB, TiB;
// without a unit it is bytes.
func ParseSize(s string) (Size, error) {
	number, factor := s, Size(1)
	for _, u := range units() {
		if rest, ok := strings.CutSuffix(s, u.name); ok {
			number, factor = strings.TrimSpace(rest), u.size
			break
		}
	}
	// ParseUint alone would take a sign or digits of another base for an error
	// that speaks of its own syntax.
	n, err := strconv.ParseUint(number, 10, 63)
	if err != nil {
		return 0, fmt.Errorf("%q is not a size such as 64MiB", s)
	}
	if n > uint64(math.MaxInt64/factor) {
		return 0, fmt.Errorf("%q is too large for a size", s)
	}
	return Size(n) * factor, nil
}

// String is the size in the largest unit that divides it.
func (s Size) String() string {
	for _, u := range units() {
		if s != 0 && s%u.size == 0 {
			return strconv.FormatInt(int64(s/u.size), 10) + u.name
		}
	}
	return "0B"
}

// MarshalText is String.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is ParseSize.
func (s *Size) UnmarshalText(text []byte) (err error) {
	*s, err = ParseSize(string(text))
	return err
}

// Duration is a length of time whose text is as time.ParseDuration has it: 1m30s.
type Duration time.Duration

// ParseDuration reads a number with a unit, such as 30s or 1m30s.
func ParseDuration(s string) (Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("%q is not a time such as 30s", s)
	}
	return Duration(d), nil
}

// String is the duration as ParseDuration reads it.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText is String.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText is ParseDuration.
func (d *Duration) UnmarshalText(text []byte) (err error) {
	*d, err = ParseDuration(string(text))
	return err
}
