package fileset

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func lines(t testing.TB, states ...state) (b []byte) {
	t.Helper()
	for _, s := range states {
		line, err := s.encode()
		if err != nil {
			t.Fatal(err)
		}
		b = append(b, line...)
	}
	return b
}

func TestLedgerIsReadUpToWhatIsTorn(t *testing.T) {
	name := filepath.Join(t.TempDir(), "x.parts")
	if got, size, err := readLedger(name, 2); err != nil || size != 0 || len(got) != 2 || got[1] != (state{Part: 1}) {
		t.Fatalf("none: %+v, %d, %v", got, size, err)
	}
	written := []state{
		{Part: 1, Bound: true, Validator: `"v1"`, Source: "a"},
		{Part: 0, Bound: true, Sequential: true},
		{Part: 1, Bound: true, Validator: `"v1"`, Source: "a", Changed: true},
	}
	whole := lines(t, written...)
	first, second := len(lines(t, written[0])), len(lines(t, written[:2]...))
	for cut := range whole {
		for _, tail := range []string{"", "\x00\x00\x00\n", "garbage"} {
			if err := os.WriteFile(name, append(append([]byte{}, whole[:cut]...), tail...), 0o600); err != nil {
				t.Fatal(err)
			}
			want, sound := []state{{Part: 0}, {Part: 1}}, 0
			if cut >= first {
				want[1], sound = written[0], first
			}
			if cut >= second {
				want[0], sound = written[1], second
			}
			got, size, err := readLedger(name, 2)
			if err != nil || int(size) != sound || !reflect.DeepEqual(got, want) {
				t.Fatalf("cut at %d: %+v, %d, %v", cut, got, size, err)
			}
			// What is written behind it is read again.
			l, err := openLedger(name, size)
			if err != nil {
				t.Fatal(err)
			}
			more := state{Part: 0, Wrong: true}
			if err := l.write(more); err != nil {
				t.Fatal(err)
			}
			if err := l.close(); err != nil {
				t.Fatal(err)
			}
			want[0] = more
			if got, _, err := readLedger(name, 2); err != nil || !reflect.DeepEqual(got, want) {
				t.Fatalf("cut at %d, and one more: %+v, %v", cut, got, err)
			}
		}
	}
}

func TestLedgerIsRewritten(t *testing.T) {
	name := filepath.Join(t.TempDir(), "x.parts")
	want := []state{{Part: 0}, {Part: 1, Bound: true, Verified: true}, {Part: 2}}
	for range 2 {
		if err := rewriteLedger(name, want); err != nil {
			t.Fatal(err)
		}
		got, _, err := readLedger(name, 3)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%+v, %v", got, err)
		}
	}
}

func FuzzLedger(f *testing.F) {
	f.Add(lines(f, state{Part: 1, Bound: true, Validator: "x"}, state{Part: 0, Wrong: true}))
	f.Add([]byte("00000000 {}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		name := filepath.Join(t.TempDir(), "x.parts")
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		got, size, err := readLedger(name, 3)
		if err != nil || len(got) != 3 || size > int64(len(b)) {
			t.Fatalf("%+v, %d, %v", got, size, err)
		}
		for n, s := range got {
			if s.Part != n {
				t.Errorf("state %d is of part %d", n, s.Part)
			}
		}
	})
}
