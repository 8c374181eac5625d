package anomaly

import (
	"math"
	"os/exec"
	"regexp"
	"testing"
)

func TestExpAndLnAgreeWithTheLibrary(t *testing.T) {
	for x := -699.0; x < 700; x += 0.0973 {
		if got, want := exp(x), math.Exp(x); math.Abs(got/want-1) > 1e-13 {
			t.Fatalf("exp(%v) = %v, want %v", x, got, want)
		}
	}
	for x := 1e-300; x < 1e300; x *= 1.0137 {
		if got, want := ln(x), math.Log(x); math.Abs(got-want) > 1e-14*math.Max(1, math.Abs(want)) {
			t.Fatalf("ln(%v) = %v, want %v", x, got, want)
		}
	}
	for _, c := range []struct{ got, want float64 }{
		{exp(0), 1}, {exp(-1e9), 0}, {exp(math.NaN()), 0}, {exp(math.Inf(-1)), 0}, {exp(1e9), exp(700)},
		{ln(1), 0}, {ln(0), -745}, {ln(-1), -745}, {ln(math.NaN()), -745}, {ln(math.Inf(1)), -745},
	} {
		if c.got != c.want {
			t.Errorf("got %v, want %v", c.got, c.want)
		}
	}
}

// The compiler fuses x*y+z on arm64 unless a conversion forbids it; one fused
// instruction and replicas of different CPUs drift apart.
func TestNoFusedMultiplyAddOnArm64(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles the package for arm64")
	}
	cmd := exec.Command("go", "build", "-gcflags=-S", "-o", t.TempDir()+"/a", ".")
	cmd.Env = append(cmd.Environ(), "GOARCH=arm64", "GOOS=linux", "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Skipf("go build for arm64: %v\n%s", err, out)
	}
	if !regexp.MustCompile(`\tFMULD`).Match(out) {
		t.Skip("the compiler printed no assembly")
	}
	if bad := regexp.MustCompile(`[^\n(]*\(([^)]*)\)\tFN?M(ADD|SUB)[SD][^\n]*`).FindAll(out, 5); bad != nil {
		t.Errorf("fused instructions, write mul(x, y) instead of x*y:\n%s", bad)
	}
}
