// Command vault is Vault's own core with the engines that the end-to-end tests
// use. The vault command itself does not build from published modules.
package main

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/hashicorp/go-hclog"
	jwt "github.com/hashicorp/vault-plugin-auth-jwt"
	kv "github.com/hashicorp/vault-plugin-secrets-kv"
	"github.com/hashicorp/vault/audit"
	"github.com/hashicorp/vault/builtin/credential/approle"
	"github.com/hashicorp/vault/builtin/credential/cert"
	"github.com/hashicorp/vault/builtin/logical/aws"
	"github.com/hashicorp/vault/builtin/logical/database"
	"github.com/hashicorp/vault/builtin/logical/pki"
	"github.com/hashicorp/vault/builtin/logical/ssh"
	vaulthttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/internalshared/configutil"
	"github.com/hashicorp/vault/plugins/database/postgresql"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/physical/file"
	"github.com/hashicorp/vault/vault"
)

var (
	engines = map[string]logical.Factory{"aws": aws.Factory, "database": database.Factory, "kv": kv.Factory, "pki": pki.Factory, "ssh": ssh.Factory}
	logins  = map[string]logical.Factory{"approle": approle.Factory, "cert": cert.Factory, "jwt": jwt.Factory}
	// databases are what the database engine runs, in this process.
	databases = map[string]func() (any, error){"postgresql-database-plugin": postgresql.New}
)

func main() {
	dir := flag.String("dir", "", "the folder: cert.pem and key.pem are in it; storage and keys.json come into it")
	listen := flag.String("listen", "127.0.0.1:8200", "the address to listen on")
	flag.Parse()
	if err := run(*dir, *listen); err != nil {
		fmt.Fprintln(os.Stderr, "vault:", err)
		os.Exit(1)
	}
}

func run(dir, listen string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	core, err := open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = core.ShutdownWait() }()
	if err := unseal(ctx, core, filepath.Join(dir, "keys.json")); err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		return err
	}
	srv := &http.Server{
		Addr:    listen,
		Handler: vaulthttp.Handler.Handler(&vault.HandlerProperties{Core: core, ListenerConfig: &configutil.Listener{}}),
		// Clients show certificates to the cert login, which judges them itself.
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12},
	}
	go func() {
		<-ctx.Done()
		_ = srv.Close()
	}()
	if err := srv.ListenAndServeTLS("", ""); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func open(dir string) (*vault.Core, error) {
	logger := hclog.New(&hclog.LoggerOptions{Level: hclog.Info, Output: os.Stderr})
	storage, err := file.NewFileBackend(map[string]string{"path": filepath.Join(dir, "storage")}, logger.Named("storage"))
	if err != nil {
		return nil, err
	}
	return vault.NewCore(&vault.CoreConfig{
		Physical: storage, StorageType: "file", Logger: logger, DisableMlock: true,
		LogicalBackends: engines, CredentialBackends: logins,
		AuditBackends:   map[string]audit.Factory{"file": audit.NewFileBackend},
		BuiltinRegistry: builtins{},
	})
}

// keys are what an operator would keep elsewhere.
type keys struct {
	Unseal string `json:"unseal"` // hexadecimal, as sys/unseal takes it
	Root   string `json:"root"`
}

// unseal opens the storage with the keys of the file, which it writes when the
// storage is new.
func unseal(ctx context.Context, core *vault.Core, path string) error {
	var k keys
	initialized, err := core.Initialized(ctx)
	if err != nil {
		return err
	}
	if initialized {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(text, &k); err != nil {
			return err
		}
	} else if k, err = initialize(ctx, core, path); err != nil {
		return err
	}
	key, err := hex.DecodeString(k.Unseal)
	if err != nil {
		return err
	}
	if open, err := core.Unseal(key); err != nil || !open {
		return fmt.Errorf("unsealing: open %t: %w", open, err)
	}
	return nil
}

func initialize(ctx context.Context, core *vault.Core, path string) (keys, error) {
	one := &vault.SealConfig{SecretShares: 1, SecretThreshold: 1, StoredShares: 1}
	made, err := core.Initialize(ctx, &vault.InitParams{BarrierConfig: one, RecoveryConfig: &vault.SealConfig{}})
	if err != nil {
		return keys{}, err
	}
	k := keys{Unseal: hex.EncodeToString(made.SecretShares[0]), Root: made.RootToken}
	text, err := json.Marshal(k)
	if err != nil {
		return keys{}, err
	}
	return k, os.WriteFile(path, text, 0o600)
}

// builtins tells the core what is in this binary.
type builtins struct{}

func (builtins) Get(name string, kind consts.PluginType) (func() (any, error), bool) {
	if kind == consts.PluginTypeDatabase {
		f, ok := databases[name]
		return f, ok
	}
	f, ok := factories(kind)[name]
	return func() (any, error) { return f, nil }, ok
}

func (b builtins) Contains(name string, kind consts.PluginType) bool {
	_, ok := b.Get(name, kind)
	return ok
}

func (builtins) Keys(kind consts.PluginType) []string {
	if kind == consts.PluginTypeDatabase {
		return slices.Sorted(maps.Keys(databases))
	}
	return slices.Sorted(maps.Keys(factories(kind)))
}

func (b builtins) DeprecationStatus(name string, kind consts.PluginType) (consts.DeprecationStatus, bool) {
	return consts.Supported, b.Contains(name, kind)
}

func (builtins) IsBuiltinEntPlugin(string, consts.PluginType) bool { return false }

func factories(kind consts.PluginType) map[string]logical.Factory {
	switch kind {
	case consts.PluginTypeCredential:
		return logins
	case consts.PluginTypeSecrets:
		return engines
	}
	return nil
}
