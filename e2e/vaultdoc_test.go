package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What docs/vault.md tells an operator is what these tests do: they read it.

func vaultDoc(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "docs", "vault.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// docPolicy gives the policy that the document has as a file.
func docPolicy(t *testing.T, file string) string {
	t.Helper()
	found := regexp.MustCompile("(?s)```hcl\n# " + regexp.QuoteMeta(file) + "\n(.*?)```").FindStringSubmatch(vaultDoc(t))
	if found == nil {
		t.Fatalf("docs/vault.md has no %s", file)
	}
	return found[1]
}

// docWrite gives what the document has an operator write to a path, as the vault
// command sends it: all values are text.
func docWrite(t *testing.T, path string) fields {
	t.Helper()
	text := strings.ReplaceAll(vaultDoc(t), "\\\n", " ")
	found := regexp.MustCompile(`(?m)^vault write ` + regexp.QuoteMeta(path) + ` (.*)$`).FindStringSubmatch(text)
	if found == nil {
		t.Fatalf("docs/vault.md writes nothing to %s", path)
	}
	written := fields{}
	for _, pair := range strings.Fields(found[1]) {
		name, value, ok := strings.Cut(pair, "=")
		if !ok {
			t.Fatalf("docs/vault.md writes %q to %s", pair, path)
		}
		written[name] = value
	}
	return written
}
