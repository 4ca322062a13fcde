package keeper

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{
		"group": true, "a b-c_d.1": true, strings.Repeat("x", 255): true,
		"": false, strings.Repeat("x", 256): false, "a:b": false, "a\n": false, "é": false, "\x7f": false,
	} {
		if err := CheckName(name); (err == nil) != ok || err != nil && !errors.Is(err, ErrBadName) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestParseMessage(t *testing.T) {
	good := map[string]message{
		"READY=1\n":                       {ready: true},
		"READY=1\nSTATUS=up\nMAINPID=12":  {ready: true, status: "up"},
		"FDSTORE=1\nFDNAME=x":             {push: true, name: "x"},
		"FDSTORE=1\nFDPOLL=0":             {push: true, name: "stored"},
		"FDNAME=x\nFDSTOREREMOVE=1":       {remove: true, name: "x"},
		"BARRIER=1":                       {barrier: true},
		"EXTEND_TIMEOUT_USEC=1500":        {extend: 1500 * time.Microsecond},
		"READY=0\nFDSTORE=2\nSTOPPING=10": {},
		"FDNAME=x":                        {},
	}
	for text, want := range good {
		if got, err := parseMessage([]byte(text)); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "\n", "READY", "=1", "READY=1\n\nSTATUS=x", "STATUS=a\x00", "STATUS=\xff",
		"FDSTORE=1\nFDSTOREREMOVE=1\nFDNAME=x", "FDSTOREREMOVE=1", "BARRIER=1\nREADY=1", "FDNAME=a:b", "EXTEND_TIMEOUT_USEC=", "EXTEND_TIMEOUT_USEC=-1", "EXTEND_TIMEOUT_USEC=86400000001",
		"STATUS=" + strings.Repeat("x", maxMessage)} {
		if _, err := parseMessage([]byte(text)); !errors.Is(err, ErrBadMessage) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// What parses is written back as a message that parses to the same.
func FuzzParseMessage(f *testing.F) {
	f.Add([]byte("READY=1\nSTATUS=up"))
	f.Add([]byte("FDSTORE=1\nFDNAME=group\nFDPOLL=0"))
	f.Add([]byte("FDSTOREREMOVE=1\nFDNAME=group"))
	f.Add([]byte("BARRIER=1"))
	f.Add([]byte("EXTEND_TIMEOUT_USEC=30000000"))
	f.Add([]byte("STOPPING=1\n\n=\x00"))
	f.Fuzz(func(t *testing.T, payload []byte) {
		m, err := parseMessage(payload)
		if err != nil {
			if !errors.Is(err, ErrBadMessage) {
				t.Fatalf("%q: %v", payload, err)
			}
			return
		}
		again := m.encode()
		if m == (message{}) {
			return // nothing that this keeper knows
		}
		// FDPOLL=0 and a default name may make it longer than the limit.
		if len(again) > maxMessage {
			return
		}
		if got, err := parseMessage(again); err != nil || got != m {
			t.Fatalf("%q: %+v; %q: %+v, %v", payload, m, again, got, err)
		}
		if bytes.ContainsAny(again, "\x00") {
			t.Fatalf("%q", again)
		}
	})
}
