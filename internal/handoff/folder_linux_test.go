package handoff

import (
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"accessbroker.internal/api"
)

func newTestFolder(t *testing.T) *Folder {
	t.Helper()
	t.Setenv("PGSERVICE", "") // so that the next call restores it
	if err := os.Unsetenv("PGSERVICE"); err != nil {
		t.Fatal(err)
	}
	f, err := NewFolder()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(f.path); err == nil {
			t.Errorf("%s remains", f.path)
		}
	})
	return f
}

// files reads the files that the variables name.
func files(t *testing.T, e Environment) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, kv := range e.Set {
		if !strings.HasPrefix(kv[1], "/") {
			all[kv[0]] = kv[1]
			continue
		}
		text, err := os.ReadFile(kv[1])
		if err != nil {
			t.Fatal(err)
		}
		all[kv[0]] = string(text)
	}
	return all
}

func TestFolderHasFilesOfEachType(t *testing.T) {
	for kind, c := range map[string]struct {
		secret map[string]string
		want   map[string]string
	}{
		"bearer": {map[string]string{"token": "t0ps3cret"}, map[string]string{
			"BROKER_ACCESS_TOKEN_FILE": "t0ps3cret", "BROKER_HEADER_FILE": "Authorization: Bearer t0ps3cret\n", "BROKER_CREDENTIAL_FILE": "t0ps3cret"}},
		"vault": {map[string]string{"token": "t0ps3cret"}, map[string]string{
			"VAULT_CONFIG_PATH": "token_helper = \"DIR/broker-token-helper\"\n", "BROKER_HEADER_FILE": "X-Vault-Token: t0ps3cret\n", "BROKER_CREDENTIAL_FILE": "t0ps3cret"}},
		"userpass": {map[string]string{"username": "u", "password": "t0ps3cret:"}, map[string]string{
			"BROKER_USERNAME_FILE": "u", "BROKER_PASSWORD_FILE": "t0ps3cret:", "PGPASSFILE": "*:*:*:u:t0ps3cret\\:\n", "PGSERVICE": "access-broker",
			"PGSERVICEFILE": "[access-broker]\nuser=u\npassword=t0ps3cret:\n", "BROKER_CREDENTIAL_FILE": `{"password":"t0ps3cret:","username":"u"}` + "\n", "PGUSER": "u"}},
		"aws": {map[string]string{"access_key_id": "i", "secret_access_key": "t0ps3cret"}, map[string]string{
			"AWS_SHARED_CREDENTIALS_FILE": "[access-broker]\ncredential_process = cat \"DIR/aws.json\"\n", "AWS_PROFILE": "access-broker",
			"BROKER_CREDENTIAL_FILE": `{"access_key_id":"i","secret_access_key":"t0ps3cret"}` + "\n"}},
		"certificate": {map[string]string{"certificate": "leaf", "private_key": "t0ps3cret", "chain": "ca"}, map[string]string{
			"BROKER_CERTIFICATE_FILE": "leaf", "BROKER_PRIVATE_KEY_FILE": "t0ps3cret", "BROKER_CHAIN_FILE": "ca", "BROKER_TLS_CERT_FILE": "leaf\nca", "PGSSLCERT": "leaf\nca",
			"BROKER_TLS_KEY_FILE": "t0ps3cret", "PGSSLKEY": "t0ps3cret", "BROKER_CREDENTIAL_FILE": `{"certificate":"leaf","chain":"ca","private_key":"t0ps3cret"}` + "\n"}},
		"data": {map[string]string{"../a.b": "t0ps3cret", "c": "d"}, map[string]string{
			"BROKER____A_B_FILE": "t0ps3cret", "BROKER_C_FILE": "d", "BROKER_CREDENTIAL_FILE": `{"../a.b":"t0ps3cret","c":"d"}` + "\n"}},
	} {
		t.Run(kind, func(t *testing.T) {
			f := newTestFolder(t)
			credential := testCredential(kind, c.secret)
			if err := f.Write(credential); err != nil {
				t.Fatal(err)
			}
			want := map[string]string{"BROKER_LEASE": "lse_1", "BROKER_EXPIRES_AT": "2026-11-02T12:00:00Z"}
			for name, text := range c.want {
				want[name] = strings.ReplaceAll(text, "DIR", f.dir())
			}
			e := f.Environment()
			if got := files(t, e); !maps.Equal(got, want) {
				t.Errorf("got  %q\nwant %q", got, want)
			}
			if env := strings.Join(e.Of(nil), "\n"); strings.Contains(env, "t0ps3cret") {
				t.Errorf("the environment has the secret: %s", env)
			}
			checkPrivate(t, f)
		})
	}
}

// checkPrivate checks that no other user can read the files, and that the secret is only
// within the folder's private part.
func checkPrivate(t *testing.T, f *Folder) {
	t.Helper()
	seen := 0
	err := filepath.WalkDir(f.path, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Type()&fs.ModeSymlink != 0 {
			return err
		}
		info, err := entry.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %o", path, info.Mode().Perm())
		}
		seen++
		return err
	})
	if err != nil || seen < 3 {
		t.Errorf("saw %d files: %v", seen, err)
	}
}

// A child that inherits another way to a credential does not use it.
func TestFolderDisplacesOtherCredentials(t *testing.T) {
	f := newTestFolder(t)
	t.Setenv("PGSERVICE", "prod") // names a host, too
	if err := f.Write(testCredential("userpass", map[string]string{"username": "u", "password": "p"})); err != nil {
		t.Fatal(err)
	}
	got := f.Environment().Of([]string{"PGPASSWORD=old", "PGPASSFILE=old", "PGSERVICE=prod", "PGHOST=db", "BROKER_URL=x"})
	want := []string{"PGSERVICE=prod", "PGHOST=db"}
	if !slices.Equal(got[:2], want) || slices.ContainsFunc(got[2:], func(kv string) bool { return strings.HasPrefix(kv, "PGSERVICE") || strings.Contains(kv, "old") }) {
		t.Errorf("got %q, want it to begin with %q", got, want)
	}
	if err := f.Write(testCredential("vault", map[string]string{"token": "t"})); err != nil {
		t.Fatal(err)
	}
	if got := f.Environment().Of([]string{"VAULT_TOKEN=old", "BAO_TOKEN=old", "BAO_CONFIG_PATH=old", "VAULT_CONFIG_PATH=old"}); strings.Contains(strings.Join(got, " "), "old") {
		t.Errorf("got %q", got)
	}
}

// A token bound to a key is of no use in a header without a proof.
func TestBoundTokenHasNoHeader(t *testing.T) {
	f := newTestFolder(t)
	c := testCredential("bearer", map[string]string{"token": "t"})
	c.Confirm = &api.Confirmation{KeyThumbprint: "x"}
	if err := f.Write(c); err != nil {
		t.Fatal(err)
	}
	got := files(t, f.Environment())
	if _, has := got["BROKER_HEADER_FILE"]; has || got["BROKER_TOKEN_TYPE"] != "DPoP" {
		t.Errorf("got %q", got)
	}
}

// A renewal replaces every file at the paths that the child has, and what a reader has
// opened or is about to open stays readable.
func TestFolderRenewsInPlace(t *testing.T) {
	f := newTestFolder(t)
	write := func(password string) map[string]string {
		if err := f.Write(testCredential("userpass", map[string]string{"username": "u-" + password, "password": password})); err != nil {
			t.Fatal(err)
		}
		return files(t, f.Environment())
	}
	write("first")
	child := f.Environment()
	followed, err := filepath.EvalSymlinks(f.dir())
	if err != nil {
		t.Fatal(err)
	}
	want := write("second")
	got := files(t, child)
	got["PGUSER"] = want["PGUSER"] // a variable of a running command stays
	if !maps.Equal(got, want) || !strings.Contains(got["PGSERVICEFILE"], "user=u-second\npassword=second") {
		t.Errorf("got %q, want %q", got, want)
	}
	if text, err := os.ReadFile(filepath.Join(followed, "field_password")); err != nil || string(text) != "first" {
		t.Errorf("a reader that had followed the link: %q, %v", text, err)
	}
	write("third")
	if entries, err := os.ReadDir(f.path); err != nil || len(entries) != 3 { // the link, and two folders
		t.Errorf("got %d entries, %v", len(entries), err)
	}
}

// The folder that a killed process left behind goes with the next one. Those of running
// processes and of other owners stay.
func TestNewFolderRemovesLeftovers(t *testing.T) {
	f := newTestFolder(t)
	base := filepath.Dir(f.path)
	left, err := os.MkdirTemp(base, prefix)
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.MkdirTemp(base, prefix)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(other) })
	if os.Geteuid() == 0 {
		if err := os.Chown(other, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	} else if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	newTestFolder(t)
	if _, err := os.Lstat(left); err == nil {
		t.Error("the leftover remains")
	}
	if _, err := os.Lstat(f.path); err != nil {
		t.Errorf("the folder in use: %v", err)
	}
	if _, err := os.Lstat(other); err != nil && os.Geteuid() == 0 {
		t.Errorf("the folder of another user: %v", err)
	}
}

// A folder in which other users can rename, or that is not in memory, gets no credential.
func TestFolderIsInMemory(t *testing.T) {
	f := newTestFolder(t)
	if !isInMemory(f.path) {
		t.Errorf("%s is not in memory", f.path)
	}
	open := filepath.Join(filepath.Dir(f.path), filepath.Base(t.TempDir())+"-open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(open) })
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"on disk": "/proc", "writable by all": open, "relative": "run"} {
		t.Setenv("XDG_RUNTIME_DIR", path)
		if slices.Contains(memoryFolders(), path) {
			t.Errorf("%s: %s is used", name, path)
		}
	}
	if err := os.Chmod(open, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("XDG_RUNTIME_DIR", open)
	if !slices.Contains(memoryFolders(), open) {
		t.Errorf("%s is not used", open)
	}
}

// The Vault command starts its token helper in a shell.
func TestTokenHelper(t *testing.T) {
	f := newTestFolder(t)
	if err := f.Write(testCredential("vault", map[string]string{"token": "t0ps3cret"})); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(f.dir(), TokenHelper)
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if to, err := os.Readlink(link); err != nil || to != program {
		t.Errorf("the helper is %s, %v", to, err)
	}
	for command, want := range map[string]string{"get": "t0ps3cret", "erase": ""} {
		if got, err := HelpWithToken(link, []string{command}); err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", command, got, err, want)
		}
	}
	for _, args := range [][]string{{"store"}, {}, {"get", "get"}} {
		if got, err := HelpWithToken(link, args); err == nil {
			t.Errorf("%q: got %q, want an error", args, got)
		}
	}
}

// The tools of AWS run the credential_process in a shell, or split it as one does.
func TestAWSProcessPrintsCredential(t *testing.T) {
	f := newTestFolder(t)
	if err := f.Write(testCredential("aws", map[string]string{"access_key_id": "i", "secret_access_key": "s", "session_token": "t"})); err != nil {
		t.Fatal(err)
	}
	_, process, _ := strings.Cut(files(t, f.Environment())["AWS_SHARED_CREDENTIALS_FILE"], "credential_process = ")
	out, err := exec.Command("sh", "-c", process).Output()
	want := `{"Version":1,"AccessKeyId":"i","SecretAccessKey":"s","SessionToken":"t","Expiration":"2026-11-02T12:00:00Z"}` + "\n"
	if err != nil || string(out) != want {
		t.Errorf("got %s, %v, want %s", out, err, want)
	}
}

func TestLockIsNotInherited(t *testing.T) {
	f := newTestFolder(t)
	out, err := exec.Command("sh", "-c", "ls -l /proc/self/fd").Output()
	if err != nil {
		t.Skip("no /proc here")
	}
	if strings.Contains(string(out), f.path) {
		t.Errorf("a child has the folder open:\n%s", out)
	}
	if err := syscall.Flock(int(f.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		t.Errorf("the folder is not locked by this process: %v", err)
	}
}

func TestParseVariable(t *testing.T) {
	for text, ok := range map[string]bool{"GH_TOKEN=token": true, "_a=b=c": true, "GH_TOKEN": false, "=token": false, "1A=token": false, "A B=token": false, "A=": false, "": false} {
		if _, err := ParseVariable(text); (err == nil) != ok {
			t.Errorf("%q: got %v", text, err)
		}
	}
}
