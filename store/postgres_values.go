package store

import (
	"database/sql/driver"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// Values are sent and received in PostgreSQL's binary formats. The schema has three types:
// BIGINT, BYTEA and TEXT.

// CheckNamedValue implements driver.NamedValueChecker.
func (c *postgresConn) CheckNamedValue(v *driver.NamedValue) (err error) {
	v.Value, err = postgresValue(v.Value)
	return err
}

// postgresValue converts an argument to a type that values encodes. SQLite has no type for
// truth, so columns of both databases have numbers for it.
func postgresValue(v any) (driver.Value, error) {
	switch v := v.(type) {
	case string:
		return validText(v), nil
	case []byte, int64, nil:
		return v, nil
	case int:
		return int64(v), nil
	}
	value, err := driver.DefaultParameterConverter.ConvertValue(v)
	if err != nil {
		return nil, err
	}
	switch v := value.(type) {
	case bool:
		if v {
			return int64(1), nil
		}
		return int64(0), nil
	case string:
		return validText(v), nil
	case []byte, int64, nil:
		return v, nil
	}
	return nil, fmt.Errorf("an argument of type %T has no column type", v)
}

// validText returns a text that PostgreSQL accepts: UTF-8 without a zero byte. Such a byte in
// a name, which the caller chose, must not keep the record that names it from being counted.
// Rows are found by texts, and what they are is in their bodies.
func validText(s string) string {
	if utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 {
		return s
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// values are the encoded arguments of a query.
type values struct {
	bytes   [][]byte
	types   []uint32
	formats []int16
}

// encodeValues encodes arguments. The server infers the type of NULL.
func encodeValues(args []driver.NamedValue) values {
	v := values{make([][]byte, len(args)), make([]uint32, len(args)), make([]int16, len(args))}
	for i := range args {
		v.formats[i] = pgtype.BinaryFormatCode
		switch x := args[i].Value.(type) {
		case []byte:
			v.bytes[i], v.types[i] = x, pgtype.ByteaOID
		case string:
			v.bytes[i], v.types[i] = []byte(x), pgtype.TextOID
		case int64:
			v.bytes[i], v.types[i] = binary.BigEndian.AppendUint64(nil, uint64(x)), pgtype.Int8OID
		}
	}
	return v
}

// binaryResults asks for the binary format of all columns.
var binaryResults = []int16{pgtype.BinaryFormatCode}

// decodeValue decodes a column. The bytes are valid until the next row.
func decodeValue(field *pgconn.FieldDescription, b []byte) (driver.Value, error) {
	if b == nil {
		return nil, nil
	}
	switch field.DataTypeOID {
	case pgtype.ByteaOID:
		return b, nil
	case pgtype.TextOID, pgtype.VarcharOID, pgtype.NameOID:
		return string(b), nil
	case pgtype.Int8OID, pgtype.Int4OID, pgtype.Int2OID:
		switch len(b) {
		case 8:
			return int64(binary.BigEndian.Uint64(b)), nil
		case 4:
			return int64(int32(binary.BigEndian.Uint32(b))), nil
		case 2:
			return int64(int16(binary.BigEndian.Uint16(b))), nil
		}
	case pgtype.BoolOID:
		if len(b) == 1 {
			return b[0] != 0, nil
		}
	}
	return nil, fmt.Errorf("the column %q has the type %d, which the driver does not read", field.Name, field.DataTypeOID)
}
