//go:build mutations

package mutate

import (
	"fmt"
	"os"
	"slices"
)

var chosen = choose()

func choose() string {
	name := os.Getenv(Env)
	if name != "" && !slices.Contains(All(), name) {
		fmt.Fprintf(os.Stderr, "%s is %q: use one of %v\n", Env, name, All())
		os.Exit(2)
	}
	return name
}

// On reports whether this process makes the mistake.
func On(name string) bool { return name == chosen }
