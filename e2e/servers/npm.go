package servers

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// npmFolders are the folders below clients/ whose package-lock.json pins packages of
// npm.
var npmFolders = []string{"axe", "cedar", "conformance", "delegation", "dpop", "javascript", "mcp", "openapi", "resource", "scim", "scimmy"}

// Modules returns the node_modules of a folder below clients/. If they have not been
// installed, the error states how to install them.
func Modules(name string) (string, error) {
	if !slices.Contains(npmFolders, name) {
		return "", fmt.Errorf("no folder of clients is named %q", name)
	}
	dir, err := npmDir(name)
	if err != nil {
		return "", err
	}
	modules := filepath.Join(dir, "node_modules")
	if _, err := os.Stat(modules); err != nil {
		return "", fmt.Errorf("the packages of %s are not installed: run make servers first (%w)", filepath.Join("clients", name), err)
	}
	return modules, nil
}

// npmDir returns the folder's place in the user's cache. Its name changes with the
// pinned versions.
func npmDir(name string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	lock, err := os.ReadFile(filepath.Join("clients", name, "package-lock.json"))
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(lock)
	return filepath.Join(cache, "access-broker", "e2e", "npm-"+name+"-"+hex.EncodeToString(sum[:6])), nil
}

func ensureNPM(ctx context.Context, out io.Writer) error {
	var all []error
	for _, name := range npmFolders {
		if err := installNPM(ctx, name, out); err != nil {
			all = append(all, fmt.Errorf("installing the packages of %s: %w", filepath.Join("clients", name), err))
		}
	}
	return errors.Join(all...)
}

// installNPM installs next to the folder and renames the result: see server.ensure.
func installNPM(ctx context.Context, name string, out io.Writer) error {
	dir, err := npmDir(name)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	unlock, err := lockFile(ctx, dir+".lock", func() { fmt.Fprintf(out, "npm %s: waiting for another installation\n", name) })
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		fmt.Fprintf(out, "npm %s: ready\n", name)
		return nil
	}
	temp := dir + ".building"
	if err := os.RemoveAll(temp); err != nil {
		return err
	}
	if err := os.Mkdir(temp, 0o755); err != nil {
		return err
	}
	for _, file := range []string{"package.json", "package-lock.json"} {
		text, err := os.ReadFile(filepath.Join("clients", name, file))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(temp, file), text, 0o644); err != nil {
			return err
		}
	}
	npm, err := Command("npm")
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	cmd.Dir = temp
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("npm ci: %w\n%s", err, text)
	}
	fmt.Fprintf(out, "npm %s: installed\n", name)
	return os.Rename(temp, dir)
}
