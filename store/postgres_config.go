package store

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

const (
	defaultConnectTimeout  = "10" // seconds
	defaultApplicationName = "access-broker"
	maxPasswordFile        = 64 << 10
)

// parsePostgres returns the settings for a connection to the database of a URL. It reads
// the files that the URL names, so a caller that calls it for each connection uses rotated
// passwords and certificates. Its errors never contain a password.
//
// Of the environment it reads only PGPASSFILE and the home directory, in which libpq's
// programs have their .pgpass: another variable for psql must not lead a broker to
// another database.
func parsePostgres(url string) (*pgx.ConnConfig, error) {
	u, err := parsePostgresURL(url)
	if err != nil {
		return nil, err
	}
	return u.config()
}

func (u *postgresURL) config() (*pgx.ConnConfig, error) {
	// pgx would read the other settings of that service.
	if os.Getenv("PGSERVICE") != "" {
		return nil, errors.New("the environment has PGSERVICE, which the broker does not use: unset it")
	}
	password, err := u.findPassword()
	if err != nil {
		return nil, err
	}
	if key := u.options["sslkey"]; key != "" {
		if err := checkPrivate(key); err != nil {
			return nil, fmt.Errorf("the option sslkey of the store's URL: %w", err)
		}
	}
	c, err := pgx.ParseConfig(u.keywords())
	if err != nil {
		// The text of err quotes all settings, of which its cause says what is wrong.
		return nil, fmt.Errorf("reading the store's URL: %w", cmp.Or(errors.Unwrap(err), err))
	}
	c.Password = password
	// These are all parameters that PgBouncer accepts without configuration.
	c.RuntimeParams = map[string]string{"application_name": cmp.Or(u.options["application_name"], defaultApplicationName)}
	return c, nil
}

// keywords returns the settings for pgx, with a value for each setting that pgx would
// otherwise take from the environment or the home directory.
func (u *postgresURL) keywords() string {
	var hosts, ports []string
	for _, h := range u.hosts {
		hosts, ports = append(hosts, h.name), append(ports, strconv.Itoa(int(h.port)))
	}
	attributes := u.options["target_session_attrs"]
	if attributes == "" {
		if attributes = "any"; len(hosts) > 1 {
			attributes = "read-write" // one of them is a standby
		}
	}
	settings := [][2]string{
		{"host", strings.Join(hosts, ",")}, {"port", strings.Join(ports, ",")}, {"database", u.database},
		{"passfile", os.DevNull}, {"password", ""}, {"options", ""}, {"timezone", ""}, {"application_name", ""},
		{"connect_timeout", cmp.Or(u.options["connect_timeout"], defaultConnectTimeout)},
		{"sslmode", u.sslmode()}, {"sslrootcert", u.options["sslrootcert"]},
		{"sslcert", u.options["sslcert"]}, {"sslkey", u.options["sslkey"]}, {"sslcertmode", "allow"},
		{"sslsni", "1"}, {"sslpassword", ""}, {"sslnegotiation", ""}, {"target_session_attrs", attributes},
		{"channel_binding", cmp.Or(u.options["channel_binding"], "prefer")}, {"require_auth", ""},
		{"min_protocol_version", "3.0"}, {"max_protocol_version", "3.0"},
	}
	if u.user != "" {
		settings = append(settings, [2]string{"user", u.user})
	}
	var b strings.Builder
	quote := strings.NewReplacer(`\`, `\\`, `'`, `\'`)
	for _, s := range settings {
		fmt.Fprintf(&b, "%s='%s' ", s[0], quote.Replace(s[1]))
	}
	return b.String()
}

// findPassword returns the password: the URL's, the content of password_file, or the line
// of a password file of libpq that fits. Without one, the server may still accept a
// certificate or the user of the operating system (peer).
func (u *postgresURL) findPassword() (string, error) {
	if u.password != "" {
		return u.password, nil
	}
	if path := u.options["password_file"]; path != "" {
		content, err := readPrivate(path)
		if err != nil {
			return "", fmt.Errorf("the option password_file of the store's URL: %w", err)
		}
		password := strings.TrimRight(string(content), "\r\n")
		if password == "" || strings.ContainsAny(password, "\r\n\x00") {
			return "", fmt.Errorf("the option password_file of the store's URL: %s must have one line, with the password", path)
		}
		return password, nil
	}
	path, named := u.options["passfile"], true
	if path == "" {
		if path, named = os.Getenv("PGPASSFILE"), false; path == "" {
			path = homePassfile()
		}
		if _, err := os.Stat(path); err != nil {
			return "", nil // as libpq
		}
	}
	content, err := readPrivate(path)
	if err != nil {
		return "", fmt.Errorf("reading the password file: %w", err)
	}
	password := u.passwordIn(string(content))
	if password == "" && named {
		return "", fmt.Errorf("the password file %s has no line for %s:%d:%s:%s", path, u.passfileHost(), u.hosts[0].port, u.database, u.user)
	}
	return password, nil
}

// homePassfile returns the password file in the home directory.
func homePassfile() string {
	home, err := os.UserHomeDir()
	if err != nil {
		return os.DevNull
	}
	return filepath.Join(home, ".pgpass")
}

// passwordIn returns the password of the first line that fits the first host, in the format
// of libpq: host:port:database:user:password, with * for any, and a backslash before a
// colon or a backslash.
func (u *postgresURL) passwordIn(content string) string {
	wanted := []string{u.passfileHost(), strconv.Itoa(int(u.hosts[0].port)), u.database, u.user}
	for line := range strings.Lines(content) {
		line = strings.TrimRight(line, "\r\n")
		if strings.HasPrefix(line, "#") {
			continue
		}
		fields := splitPassfile(line)
		if len(fields) == 5 && slices.EqualFunc(fields[:4], wanted, func(have, want string) bool { return have == "*" || have == want }) {
			return fields[4]
		}
	}
	return ""
}

func (u *postgresURL) passfileHost() string {
	if u.hosts[0].socket() {
		return "localhost" // as libpq
	}
	return u.hosts[0].name
}

// splitPassfile splits a line at its colons and removes the backslashes.
func splitPassfile(line string) []string {
	fields := []string{""}
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\\' && i+1 < len(line):
			i++
			fields[len(fields)-1] += string(line[i])
		case c == ':' && len(fields) < 5:
			fields = append(fields, "")
		default:
			fields[len(fields)-1] += string(c)
		}
	}
	return fields
}

// readPrivate reads a small file that other users must not be able to read.
func readPrivate(path string) ([]byte, error) {
	if err := checkPrivate(path); err != nil {
		return nil, err
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(content) > maxPasswordFile {
		return nil, fmt.Errorf("%s has more than %d bytes", path, maxPasswordFile)
	}
	return bytes.TrimPrefix(content, []byte("\xef\xbb\xbf")), nil
}

// checkPrivate refuses a file that other users can read. As in libpq, a file of root may be
// readable by a group: orchestrators mount secrets so.
func checkPrivate(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file", path)
	}
	mode := info.Mode().Perm()
	if mode&0o077 == 0 || mode&0o037 == 0 && ownedByRoot(info) {
		return nil
	}
	return fmt.Errorf("%s can be read by other users (mode %o): run chmod 600", path, mode)
}
