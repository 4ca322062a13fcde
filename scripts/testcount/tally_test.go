package main

import (
	"strings"
	"testing"
)

func TestTallyCountsLeaves(t *testing.T) {
	tests := []struct {
		name, stream            string
		passed, failed, skipped int
		printed                 string
	}{
		{"plain", `
{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p"}`, 1, 0, 0, ""},
		{"subtests count, their parent does not", `
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestA/x"}
{"Action":"run","Package":"p","Test":"TestA/y"}
{"Action":"pass","Package":"p","Test":"TestA/x"}
{"Action":"output","Package":"p","Test":"TestA/y","Output":"no such kernel\n"}
{"Action":"skip","Package":"p","Test":"TestA/y"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p"}`, 1, 0, 1, "no such kernel"},
		{"a failed subtest counts once", `
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestA/x"}
{"Action":"output","Package":"p","Test":"TestA/x","Output":"want 1\n"}
{"Action":"fail","Package":"p","Test":"TestA/x"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"fail","Package":"p"}`, 0, 1, 0, "want 1"},
		{"a parent that fails by itself counts", `
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestA/x"}
{"Action":"pass","Package":"p","Test":"TestA/x"}
{"Action":"output","Package":"p","Test":"TestA","Output":"left behind\n"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"fail","Package":"p"}`, 1, 1, 0, "left behind"},
		{"build error", `
{"Action":"build-output","ImportPath":"p [p.test]","Output":"undefined: x\n"}
{"Action":"build-fail","ImportPath":"p [p.test]"}
{"Action":"start","Package":"p"}
{"Action":"fail","Package":"p","FailedBuild":"p [p.test]"}`, 0, 1, 0, "undefined: x"},
		{"package fails after its tests pass", `
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"goleak: found 1\n"}
{"Action":"fail","Package":"p"}`, 1, 1, 0, "goleak: found 1"},
		{"test still running when its package dies", `
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"panic: timed out\n"}
{"Action":"fail","Package":"p"}`, 0, 1, 0, "panic: timed out"},
		{"stream cut off", `
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestA"}`, 1, 1, 0, ""},
		{"no test files", `
{"Action":"start","Package":"p"}
{"Action":"output","Package":"p","Output":"?   p [no test files]\n"}
{"Action":"skip","Package":"p"}`, 0, 0, 0, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			tl := newTally(&out)
			if err := tl.read(strings.NewReader(tt.stream)); err != nil {
				t.Fatal(err)
			}
			tl.unfinished()
			if tl.passed != tt.passed || tl.failed != tt.failed || tl.skipped != tt.skipped {
				t.Errorf("%d passed, %d failed, %d skipped; want %d, %d, %d\n%s",
					tl.passed, tl.failed, tl.skipped, tt.passed, tt.failed, tt.skipped, out.String())
			}
			if !strings.Contains(out.String(), tt.printed) {
				t.Errorf("output lacks %q:\n%s", tt.printed, out.String())
			}
		})
	}
}
