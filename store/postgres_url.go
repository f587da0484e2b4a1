package store

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A postgresURL is a parsed URL of a PostgreSQL database:
//
//	postgres://USER[:PASSWORD]@HOST[:PORT][,HOST[:PORT]…]/DATABASE[?OPTION=VALUE&…]
//
// A host that begins with a slash is the folder of a Unix socket.
type postgresURL struct {
	user, password string
	hosts          []postgresHost
	database       string
	options        map[string]string
}

type postgresHost struct {
	name string
	port uint16
}

const postgresPort = 5432

// postgresForm is the form of the URL, for errors.
const postgresForm = "postgres://USER@HOST/DATABASE"

// errEncode is the error of a URL in which a password may be anywhere, so that no part of
// it can be quoted.
var errEncode = errors.New("the URL of the store has an @ that does not end the user's part: in a user name, a password or an option, write @ as %40, : as %3A, / as %2F, ? as %3F, # as %23 and % as %25")

// postgresOptions are the options of a URL, with the check of their values. The last five
// are other places for parts of the URL, as in libpq.
var postgresOptions = map[string]func(value string) error{
	"sslmode":              oneOf("verify-full", "verify-ca", "require", "prefer", "allow", "disable"),
	"sslrootcert":          notEmpty,
	"sslcert":              notEmpty,
	"sslkey":               notEmpty,
	"passfile":             notEmpty,
	"password_file":        notEmpty,
	"target_session_attrs": checkSessionAttributes,
	"connect_timeout":      checkConnectTimeout,
	"application_name":     checkApplicationName,
	"channel_binding":      oneOf("prefer", "require", "disable"),
	"host":                 notEmpty,
	"port":                 notEmpty,
	"user":                 notEmpty,
	"password":             notEmpty,
	"dbname":               notEmpty,
}

// pathOptions are the options that name files.
var pathOptions = []string{"sslrootcert", "sslcert", "sslkey", "passfile", "password_file"}

func notEmpty(value string) error {
	if value == "" {
		return errors.New("is empty")
	}
	return nil
}

func oneOf(values ...string) func(string) error {
	return func(value string) error {
		if !slices.Contains(values, value) {
			return fmt.Errorf("is %q; write one of %s", value, strings.Join(values, ", "))
		}
		return nil
	}
}

func checkSessionAttributes(value string) error {
	if slices.Contains([]string{"read-only", "standby", "prefer-standby"}, value) {
		return fmt.Errorf("is %q, but the broker writes: use read-write", value)
	}
	return oneOf("read-write", "primary", "any")(value)
}

func checkConnectTimeout(value string) error {
	if n, err := strconv.Atoi(value); err != nil || n < 1 || n > 60 {
		return errors.New("must be a number of seconds from 1 to 60")
	}
	return nil
}

func checkApplicationName(value string) error {
	if value == "" || len(value) > 63 || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }) {
		return errors.New("must be at most 63 printable ASCII characters")
	}
	return nil
}

// parsePostgresURL parses and checks a URL. Its errors never contain the password.
func parsePostgresURL(text string) (*postgresURL, error) {
	scheme, rest, _ := strings.Cut(text, "://")
	if scheme != "postgres" && scheme != "postgresql" {
		return nil, fmt.Errorf("the URL of the store is not of the form %s", postgresForm)
	}
	if strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return nil, errors.New("the URL of the store has a space or a control character: write it percent-encoded, such as %20")
	}
	u := &postgresURL{options: map[string]string{}}
	user, rest, has := cutUser(rest)
	if strings.Contains(rest, "@") {
		return nil, errEncode
	}
	if has {
		if err := u.setUser(user); err != nil {
			return nil, err
		}
	}
	// From here on, the password is not in the text.
	rest, query, _ := strings.Cut(rest, "?")
	if err := u.setOptions(query); err != nil {
		return nil, err
	}
	hosts, database, _ := strings.Cut(rest, "/")
	if err := u.setDatabase(database); err != nil {
		return nil, err
	}
	if err := u.setHosts(hosts); err != nil {
		return nil, err
	}
	return u, u.check()
}

// cutUser cuts the user and the password off. As in libpq, they end with the first @ before
// a slash.
func cutUser(text string) (user, rest string, has bool) {
	if i := strings.IndexAny(text, "@/?"); i >= 0 && text[i] == '@' {
		return text[:i], text[i+1:], true
	}
	return "", text, false
}

func (u *postgresURL) setUser(text string) (err error) {
	user, password, _ := strings.Cut(text, ":")
	if u.user, err = url.PathUnescape(user); err != nil {
		return errors.New("the user name in the URL of the store is not percent-encoded: write % as %25")
	}
	if u.password, err = url.PathUnescape(password); err != nil {
		return errors.New("the password in the URL of the store is not percent-encoded: write % as %25")
	}
	return nil
}

func (u *postgresURL) setOptions(query string) error {
	for option := range strings.SplitSeq(query, "&") {
		if option == "" {
			continue
		}
		name, value, has := strings.Cut(option, "=")
		check := postgresOptions[name]
		switch _, twice := u.options[name]; {
		case check == nil && (strings.HasPrefix(name, "pool_") || name == "options" || name == "search_path"):
			return fmt.Errorf("the option %q of the store's URL is not supported: the broker sets its sessions up itself", name)
		case check == nil:
			return fmt.Errorf("the store's URL has the unknown option %q; the options are %s", name, strings.Join(optionNames(), ", "))
		case twice:
			return fmt.Errorf("the store's URL has the option %s twice", name)
		case !has:
			return fmt.Errorf("the option %s of the store's URL has no value: write %s=VALUE", name, name)
		}
		value, err := url.PathUnescape(value)
		if err != nil {
			return fmt.Errorf("the option %s of the store's URL is not percent-encoded: write %% as %%25", name)
		}
		if err := check(value); err != nil {
			return fmt.Errorf("the option %s of the store's URL %w", name, err)
		}
		u.options[name] = value
	}
	for option, part := range map[string]*string{"user": &u.user, "password": &u.password} {
		if value := u.options[option]; value != "" && *part != "" {
			return fmt.Errorf("the store's URL has two values for the %s", option)
		} else if value != "" {
			*part = value
		}
		delete(u.options, option)
	}
	return nil
}

// optionNames returns the options that errors recommend.
func optionNames() []string {
	names := slices.Sorted(maps.Keys(postgresOptions))
	return slices.DeleteFunc(names, func(name string) bool {
		return slices.Contains([]string{"user", "password", "dbname", "port"}, name)
	})
}

func (u *postgresURL) setDatabase(text string) error {
	switch {
	case isDatabaseFile(text):
		return fmt.Errorf("the store's URL names the file /%s: for a database of SQLite, write sqlite:/%s", text, text)
	case strings.Contains(text, "/"):
		return fmt.Errorf("the store's URL has more than a database's name after the host: write %s, and / in a name as %%2F", postgresForm)
	}
	name, err := url.PathUnescape(text)
	if err != nil {
		return errors.New("the database's name in the store's URL is not percent-encoded: write % as %25")
	}
	if other := u.options["dbname"]; name == "" {
		name = other
	}
	delete(u.options, "dbname")
	if u.database = name; name == "" {
		return fmt.Errorf("the store's URL names no database: write %s", postgresForm)
	}
	if len(name) > 63 || strings.ContainsRune(name, 0) {
		return errors.New("the database's name in the store's URL is longer than the 63 bytes of PostgreSQL's names")
	}
	return nil
}

// isDatabaseFile reports whether what should be a database's name is the path of a file.
func isDatabaseFile(text string) bool {
	return slices.Contains([]string{".db", ".sqlite", ".sqlite3"}, filepath.Ext(text))
}

func (u *postgresURL) setHosts(text string) error {
	if host := u.options["host"]; host != "" {
		if text != "" {
			return errors.New("the store's URL has two values for the host: remove the option host")
		}
		text = strings.ReplaceAll(host, "/", "%2F")
		if port := u.options["port"]; port != "" {
			text += ":" + port
		}
	} else if u.options["port"] != "" {
		return errors.New("the option port of the store's URL is for the option host: write HOST:PORT")
	}
	delete(u.options, "host")
	delete(u.options, "port")
	if text == "" {
		return fmt.Errorf("the store's URL names no host: write %s, or postgres:///DATABASE?host=/run/postgresql for a Unix socket", postgresForm)
	}
	for part := range strings.SplitSeq(text, ",") {
		host, err := parsePostgresHost(part)
		if err != nil {
			return err
		}
		u.hosts = append(u.hosts, host)
	}
	if len(u.hosts) > maxPostgresHosts {
		return fmt.Errorf("the store's URL names %d hosts; the most are %d", len(u.hosts), maxPostgresHosts)
	}
	return nil
}

const maxPostgresHosts = 8

// parsePostgresHost parses HOST[:PORT]. An IPv6 address is in brackets.
func parsePostgresHost(text string) (postgresHost, error) {
	name, port, hasPort := text, "", false
	if inner, rest, ok := strings.Cut(text, "]"); strings.HasPrefix(text, "[") {
		if name = inner[1:]; !ok || net.ParseIP(name) == nil || rest != "" && rest[0] != ':' {
			return postgresHost{}, fmt.Errorf("the host %q in the store's URL is not an IPv6 address in brackets, such as [2001:db8::1]:5432", text)
		}
		port, hasPort = strings.CutPrefix(rest, ":")
	} else if name, port, hasPort = strings.Cut(text, ":"); strings.Contains(port, ":") {
		return postgresHost{}, errors.New("a host in the store's URL has more than one colon: write an IPv6 address in brackets, such as [2001:db8::1]:5432")
	}
	name, err := url.PathUnescape(name)
	switch {
	case err != nil:
		return postgresHost{}, errors.New("a host in the store's URL is not percent-encoded: write % as %25")
	case name == "":
		return postgresHost{}, fmt.Errorf("the store's URL has an empty host: write %s", postgresForm)
	case strings.HasPrefix(name, "/"):
	case strings.ContainsFunc(name, notInHosts):
		return postgresHost{}, fmt.Errorf("the host %q in the store's URL is not a host's name or address", name)
	}
	host := postgresHost{name, postgresPort}
	if hasPort {
		// The port is not quoted: if the URL lacks its @, it is the password.
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return postgresHost{}, fmt.Errorf("the port of host %q in the store's URL is not a number from 1 to 65535", name)
		}
		host.port = uint16(n)
	}
	return host, nil
}

func notInHosts(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(".-_:%", r))
}

// check checks the parts of a URL against each other.
func (u *postgresURL) check() error {
	switch {
	case u.user == "" && !u.local():
		return fmt.Errorf("the store's URL names no user: write %s", postgresForm)
	case len(u.user) > 63 || strings.ContainsRune(u.user+u.password, 0):
		return errors.New("the user name in the store's URL is longer than the 63 bytes of PostgreSQL's names")
	case (u.options["sslcert"] == "") != (u.options["sslkey"] == ""):
		return errors.New("the store's URL has only one of the options sslcert and sslkey: a client certificate needs both")
	case u.password != "" && u.options["password_file"] != "", u.password != "" && u.options["passfile"] != "", u.options["password_file"] != "" && u.options["passfile"] != "":
		return errors.New("the store's URL names the password in more than one way: keep one of password_file, passfile and the password itself")
	}
	for _, option := range []string{"sslmode", "sslrootcert", "sslcert"} {
		if u.options[option] != "" && u.local() {
			return fmt.Errorf("the store's URL has the option %s, but a Unix socket has no TLS: remove the option", option)
		}
	}
	return nil
}

// local reports whether every host is a Unix socket.
func (u *postgresURL) local() bool {
	return !slices.ContainsFunc(u.hosts, func(h postgresHost) bool { return !h.socket() })
}

func (h postgresHost) socket() bool { return strings.HasPrefix(h.name, "/") }

// loopback reports whether the host is this machine.
func (h postgresHost) loopback() bool {
	ip := net.ParseIP(h.name)
	return h.socket() || h.name == "localhost" || ip != nil && ip.IsLoopback()
}

// sslmode returns the mode of TLS: as written, or verify-full unless every host is this
// machine.
func (u *postgresURL) sslmode() string {
	if mode := u.options["sslmode"]; mode != "" {
		return mode
	}
	for _, h := range u.hosts {
		if !h.loopback() {
			return "verify-full"
		}
	}
	return "disable"
}

// weak describes what a mode of TLS lacks; "" means nothing.
func (u *postgresURL) weak() string {
	remote := slices.ContainsFunc(u.hosts, func(h postgresHost) bool { return !h.loopback() })
	switch mode := u.sslmode(); {
	case !remote || mode == "verify-full":
		return ""
	case mode == "disable":
		return "sslmode=disable sends everything to the database as readable text, and accepts any server: use verify-full"
	case mode == "verify-ca" || mode == "require" && u.options["sslrootcert"] != "":
		return fmt.Sprintf("sslmode=%s accepts any server with a certificate of the authority, whatever its name: use verify-full", mode)
	case mode == "require":
		return "sslmode=require accepts any server, because it does not check the certificate: use verify-full"
	default:
		return fmt.Sprintf("sslmode=%s accepts any server, with or without TLS: use verify-full", mode)
	}
}

// String returns the URL with its password replaced.
func (u *postgresURL) String() string { return u.format("xxxxx") }

// format returns the URL with this password if it has one.
func (u *postgresURL) format(password string) string {
	var b strings.Builder
	b.WriteString("postgres://")
	if u.user != "" || u.password != "" {
		b.WriteString(escape(u.user))
		if u.password != "" {
			b.WriteString(":" + escape(password))
		}
		b.WriteString("@")
	}
	for i, h := range u.hosts {
		if i > 0 {
			b.WriteString(",")
		}
		b.WriteString(h.String())
	}
	b.WriteString("/" + escape(u.database))
	separator := "?"
	for _, name := range slices.Sorted(maps.Keys(u.options)) {
		b.WriteString(separator + name + "=" + strings.ReplaceAll(escape(u.options[name]), "%2F", "/"))
		separator = "&"
	}
	return b.String()
}

// escape returns a text for any part of a URL.
func escape(text string) string { return strings.ReplaceAll(url.QueryEscape(text), "+", "%20") }

func (h postgresHost) String() string {
	name := h.name
	switch {
	case h.socket():
		name = escape(name)
	case strings.Contains(name, ":"):
		name = "[" + name + "]"
	}
	if h.port == postgresPort {
		return name
	}
	return name + ":" + strconv.Itoa(int(h.port))
}
