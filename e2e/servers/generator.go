package servers

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// ensureGenerator downloads the modules of the generated Go client and builds its
// generator, which the go command caches. The client is a module of its own, so that
// go.sum pins its generator.
func ensureGenerator(ctx context.Context, out io.Writer) error {
	for _, args := range [][]string{{"mod", "download"}, {"tool", "oapi-codegen", "-version"}} {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir, cmd.Env = filepath.Join("clients", "openapi-go"), append(os.Environ(), "GOFLAGS=-mod=readonly", "GOWORK=off")
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("preparing the generator of clients/openapi-go: go %v: %w\n%s", args, err, text)
		}
	}
	fmt.Fprintln(out, "oapi-codegen: ready")
	return nil
}
