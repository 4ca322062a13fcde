package keeper

import (
	"testing"
	"time"
)

func TestDeathsAreHandedOn(t *testing.T) {
	d := Deaths{}.another(time.Unix(1000, 5)).another(time.Unix(2000, 6))
	got, err := parseDeaths(d.text())
	if err != nil || got.Count != 2 || !got.Last.Equal(time.Unix(2000, 0)) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := parseDeaths(""); err != nil || got != (Deaths{}) {
		t.Errorf("none: %+v, %v", got, err)
	}
	for _, bad := range []string{" ", "1", "x 1", "1 x", "-1 1", "0 1", "1 2 3"} {
		if got, err := parseDeaths(bad); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}
