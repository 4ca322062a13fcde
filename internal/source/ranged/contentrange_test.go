package ranged

import (
	"math"
	"net/http"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestContentRange(t *testing.T) {
	for s, want := range map[string]ContentRange{
		"bytes 0-0/1":     {Size: 1},
		"bytes 5-9/*":     {First: 5, Last: 9, Size: -1},
		"BYTES 1-2/3":     {First: 1, Last: 2, Size: 3},
		"bytes */0":       {Unsatisfied: true},
		"bytes */1234":    {Size: 1234, Unsatisfied: true},
		"bytes 00-01/002": {Last: 1, Size: 2},
		"bytes 0-9223372036854775806/9223372036854775807": {Last: math.MaxInt64 - 1, Size: math.MaxInt64},
	} {
		if got, err := parseContentRange(s); err != nil || got != want {
			t.Errorf("%q: %+v, %v", s, got, err)
		}
	}
	for _, s := range []string{
		"", "bytes", "bytes ", "bytes 0-0", "bytes 0-0/", "bytes 0-1/1", "bytes 2-1/3", "bytes -1/3", "bytes 1-/3",
		"bytes +0-0/1", "bytes 0-0/+1", "bytes  0-0/1", "bytes 0-0/1 ", " bytes 0-0/1", "bytes\t0-0/1", "bytes=0-0/1",
		"bytes 0-0/1,2", "bytes 0-0/1/1", "bytes */*", "bytes 0 - 0/1", "octets 0-0/1", "bytes 0-0/9223372036854775808",
		"bytes 0-99999999999999999999/*", "bytes 0-0-0/1", "bytes 0x0-0/1", "bytes ٠-٠/1", "bytes *-0/1",
	} {
		if got, err := parseContentRange(s); err == nil {
			t.Errorf("%q parsed as %+v", s, got)
		}
	}
}

func TestContentRangeRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := ContentRange{Size: rapid.Int64Range(-1, math.MaxInt64).Draw(t, "size")}
		if c.Size == 0 || c.Size > 0 && rapid.Bool().Draw(t, "unsatisfied") {
			c.Unsatisfied = true
		} else {
			top := c.Size - 1
			if c.Size < 0 {
				top = math.MaxInt64
			}
			c.Last = rapid.Int64Range(0, top).Draw(t, "last")
			c.First = rapid.Int64Range(0, c.Last).Draw(t, "first")
		}
		if got, err := parseContentRange(c.String()); err != nil || got != c {
			t.Fatalf("%+v became %+v, %v", c, got, err)
		}
	})
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-0/1", "bytes 10-20/*", "bytes */100", "bytes 1-0/1", "bytes 0-0/9223372036854775807"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := parseContentRange(s)
		if err != nil {
			return
		}
		ok := c.First >= 0 && c.First <= c.Last && c.Size >= -1 && (c.Size < 0 || c.Last < c.Size)
		if c.Unsatisfied {
			ok = c.First == 0 && c.Last == 0 && c.Size >= 0
		}
		if !ok {
			t.Fatalf("%q: out of bounds: %+v", s, c)
		}
		if again, err := parseContentRange(c.String()); err != nil || again != c {
			t.Fatalf("%q: %+v became %+v, %v", s, c, again, err)
		}
	})
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
	for s, want := range map[string]time.Duration{
		"": 0, "0": 0, "120": 2 * time.Minute, "-1": 0, "soon": 0, "1.5": 0, "99999999999999": 0,
		now.Add(time.Hour).Format(http.TimeFormat):  time.Hour,
		now.Add(-time.Hour).Format(http.TimeFormat): 0,
	} {
		if got := retryAfter(s, now); got != want {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	}
}

func TestStrongETag(t *testing.T) {
	for v, want := range map[string]bool{
		`"a"`: true, `""`: true, `W/"a"`: false, `"`: false, ``: false, `a`: false, "\"a\r\nb\"": false,
		`"a"b"`: false, `"a b"`: false, lastModified + "x": false,
	} {
		if IsStrong(v) != want {
			t.Errorf("%q: %v", v, !want)
		}
	}
}
