package config

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

func textOf(v any) string { return fmt.Sprint(v) }

func TestSizeText(t *testing.T) {
	tests := []struct {
		text string
		want Size
		back string
	}{
		{"0", 0, "0B"}, {"1", 1, "1B"}, {"1024", KiB, "1KiB"}, {"1536B", 1536, "1536B"},
		{"64MiB", 64 * MiB, "64MiB"}, {"64 MiB", 64 * MiB, "64MiB"}, {"2048GiB", 2 * TiB, "2TiB"},
	}
	for _, tt := range tests {
		got, err := ParseSize(tt.text)
		if err != nil || got != tt.want || got.String() != tt.back {
			t.Errorf("%q: got %d (%s), %v; want %d (%s)", tt.text, got, got, err, tt.want, tt.back)
		}
	}
	for _, text := range []string{"", "MiB", "1.5GiB", "64MB", "64 mib", "+1", "-1", "0x10", "1_000", "9223372036854775808", "8388608TiB"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q: got %s, no error", text, got)
		}
	}
}

func TestUnitsPrintAsTheyParse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := Size(rapid.Int64Min(0).Draw(t, "size"))
		if got, err := ParseSize(size.String()); err != nil || got != size {
			t.Errorf("%d prints as %s, reads as %d, %v", size, size, got, err)
		}
		d := Duration(rapid.Int64().Draw(t, "duration"))
		if got, err := ParseDuration(d.String()); err != nil || got != d {
			t.Errorf("%d prints as %s, reads as %d, %v", d, d, got, err)
		}
	})
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"64MiB", "0", "1 KiB", "B", "9223372036854775807", "-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		size, err := ParseSize(s)
		if err != nil {
			return
		}
		if size < 0 {
			t.Fatalf("%q is %d", s, size)
		}
		if again, err := ParseSize(size.String()); err != nil || again != size {
			t.Fatalf("%q is %d, printed %s, read %d, %v", s, size, size, again, err)
		}
	})
}
