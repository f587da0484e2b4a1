package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The tests configure Vault with the policies and commands of docs/vault.md.

func vaultDoc(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "docs", "vault.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// docPolicy returns the policy that the document shows as a file.
func docPolicy(t testing.TB, file string) string {
	t.Helper()
	found := regexp.MustCompile("(?s)```hcl\n# " + regexp.QuoteMeta(file) + "\n(.*?)```").FindStringSubmatch(vaultDoc(t))
	if found == nil {
		t.Fatalf("docs/vault.md has no %s", file)
	}
	return found[1]
}

// docWrite returns the arguments of the document's "vault write" to a path, as
// the vault command sends them: all values are text.
func docWrite(t testing.TB, path string) fields {
	t.Helper()
	text := strings.ReplaceAll(vaultDoc(t), "\\\n", " ")
	found := regexp.MustCompile(`(?m)^vault write ` + regexp.QuoteMeta(path) + ` (.*)$`).FindStringSubmatch(text)
	if found == nil {
		t.Fatalf("docs/vault.md has no vault write to %s", path)
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
