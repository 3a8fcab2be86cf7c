"""let members sign in

E-mail, password, second factor and sessions of members; scopes and networks of API keys; approval,
revocation and former keys of training clients; when a signing key was retired.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

WIDENED = {
    ("clients", "state", "clientstate"): (
        ("active", "suspended"),
        ("pending", "active", "suspended", "rejected", "revoked"),
    ),
    ("signing_keys", "state", "keystate"): (
        ("next", "current", "retired"),
        ("next", "current", "retired", "revoked"),
    ),
}


def upgrade() -> None:
    op.create_table(
        "attempts",
        sa.Column("key_hmac", sa.LargeBinary(), nullable=False),
        sa.Column("failures", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key_hmac", name=op.f("pk_attempts")),
    )
    op.create_index(op.f("ix_attempts_last_at"), "attempts", ["last_at"], unique=False)
    op.create_table(
        "former_client_keys",
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("octet_length(public_key) = 32", name=op.f("ck_former_client_keys_ed25519_key")),
        sa.ForeignKeyConstraint(
            ["client_id"], ["clients.id"], name=op.f("fk_former_client_keys_client_id_clients")
        ),
        sa.PrimaryKeyConstraint("public_key", name=op.f("pk_former_client_keys")),
    )
    op.create_index(
        op.f("ix_former_client_keys_client_id"), "former_client_keys", ["client_id"], unique=False
    )
    op.create_table(
        "member_sessions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("member_id", sa.Uuid(), nullable=False),
        sa.Column("method", sa.String(length=64), nullable=False),
        sa.Column("second_factor", sa.Boolean(), nullable=False),
        sa.Column("address", sa.String(length=45), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "ended_why",
            sa.Enum(
                "logout",
                "everywhere",
                "changed",
                "reuse",
                name="sessionend",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=True,
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["member_id"], ["members.id"], name=op.f("fk_member_sessions_member_id_members")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_member_sessions")),
    )
    op.create_index(op.f("ix_member_sessions_ended_at"), "member_sessions", ["ended_at"], unique=False)
    op.create_index(op.f("ix_member_sessions_member_id"), "member_sessions", ["member_id"], unique=False)
    op.create_table(
        "oidc_identities",
        sa.Column("issuer", sa.String(length=300), nullable=False),
        sa.Column("subject", sa.String(length=255), nullable=False),
        sa.Column("member_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["member_id"], ["members.id"], name=op.f("fk_oidc_identities_member_id_members")
        ),
        sa.PrimaryKeyConstraint("issuer", "subject", name=op.f("pk_oidc_identities")),
    )
    op.create_index(op.f("ix_oidc_identities_member_id"), "oidc_identities", ["member_id"], unique=False)
    op.create_table(
        "oidc_logins",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("issuer_name", sa.String(length=64), nullable=False),
        sa.Column("state_hmac", sa.LargeBinary(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("redirect_uri", sa.String(length=500), nullable=False),
        sa.Column("caller_state", sa.String(length=500), nullable=False),
        sa.Column("code_challenge", sa.String(length=64), nullable=False),
        sa.Column("code_hmac", sa.LargeBinary(), nullable=True),
        sa.Column("member_id", sa.Uuid(), nullable=True),
        sa.Column("second_factor", sa.Boolean(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["member_id"], ["members.id"], name=op.f("fk_oidc_logins_member_id_members")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_oidc_logins")),
        sa.UniqueConstraint("code_hmac", name=op.f("uq_oidc_logins_code_hmac")),
        sa.UniqueConstraint("state_hmac", name=op.f("uq_oidc_logins_state_hmac")),
    )
    op.create_index(op.f("ix_oidc_logins_expires_at"), "oidc_logins", ["expires_at"], unique=False)
    op.create_table(
        "password_tokens",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("member_id", sa.Uuid(), nullable=False),
        sa.Column(
            "purpose",
            sa.Enum(
                "invitation",
                "reset",
                name="tokenpurpose",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("token_hmac", sa.LargeBinary(), nullable=False),
        sa.Column("drops_second_factor", sa.Boolean(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_by", sa.String(length=100), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["member_id"], ["members.id"], name=op.f("fk_password_tokens_member_id_members")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_password_tokens")),
        sa.UniqueConstraint("token_hmac", name=op.f("uq_password_tokens_token_hmac")),
    )
    op.create_index(op.f("ix_password_tokens_member_id"), "password_tokens", ["member_id"], unique=False)
    op.create_table(
        "recovery_codes",
        sa.Column("member_id", sa.Uuid(), nullable=False),
        sa.Column("code_hmac", sa.LargeBinary(), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["member_id"], ["members.id"], name=op.f("fk_recovery_codes_member_id_members")
        ),
        sa.PrimaryKeyConstraint("member_id", "code_hmac", name=op.f("pk_recovery_codes")),
    )
    op.create_table(
        "refresh_tokens",
        sa.Column("token_hmac", sa.LargeBinary(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["member_sessions.id"],
            name=op.f("fk_refresh_tokens_session_id_member_sessions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("token_hmac", name=op.f("pk_refresh_tokens")),
    )
    op.create_index(op.f("ix_refresh_tokens_session_id"), "refresh_tokens", ["session_id"], unique=False)
    op.add_column("api_keys", sa.Column("scopes", postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.add_column("api_keys", sa.Column("networks", postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.add_column("api_keys", sa.Column("replaces", sa.Uuid(), nullable=True))
    op.add_column("api_keys", sa.Column("last_used_address", sa.String(length=45), nullable=True))
    op.create_foreign_key(op.f("fk_api_keys_replaces_api_keys"), "api_keys", "api_keys", ["replaces"], ["id"])
    op.add_column("clients", sa.Column("token_epoch", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("clients", sa.Column("token_epoch_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "enrolments",
        sa.Column(
            "approval",
            sa.Enum(
                "automatic", "manual", name="approval", native_enum=False, create_constraint=True, length=32
            ),
            server_default="automatic",
            nullable=False,
        ),
    )
    op.add_column(
        "members",
        sa.Column(
            "kind",
            sa.Enum(
                "person", "service", name="memberkind", native_enum=False, create_constraint=True, length=32
            ),
            server_default="person",
            nullable=False,
        ),
    )
    op.add_column("members", sa.Column("email_sealed", sa.LargeBinary(), nullable=True))
    op.add_column("members", sa.Column("email_hash", sa.LargeBinary(), nullable=True))
    op.add_column("members", sa.Column("password_hash", sa.String(length=200), nullable=True))
    op.add_column("members", sa.Column("totp_sealed", sa.LargeBinary(), nullable=True))
    op.add_column("members", sa.Column("totp_offered_sealed", sa.LargeBinary(), nullable=True))
    op.add_column("members", sa.Column("totp_last_step", sa.BigInteger(), nullable=True))
    op.add_column("members", sa.Column("token_epoch", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("members", sa.Column("token_epoch_at", sa.DateTime(timezone=True), nullable=True))
    op.create_unique_constraint(op.f("uq_members_email_hash"), "members", ["email_hash"])
    op.add_column("signing_keys", sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True))
    op.create_check_constraint(
        "service_without_password", "members", "kind = 'person' OR password_hash IS NULL"
    )
    op.create_check_constraint("email_whole", "members", "(email_sealed IS NULL) = (email_hash IS NULL)")
    for (table, column, name), (_before, after) in WIDENED.items():
        op.drop_constraint(name, table, type_="check")
        op.create_check_constraint(name, table, sa.column(column).in_(after))
    op.execute("UPDATE signing_keys SET retired_at = now() WHERE state = 'retired'")


def downgrade() -> None:
    for (table, column, name), (before, _after) in WIDENED.items():
        op.drop_constraint(name, table, type_="check")
        op.create_check_constraint(name, table, sa.column(column).in_(before))
    for name in ("email_whole", "service_without_password"):
        op.drop_constraint(name, "members", type_="check")
    op.drop_column("signing_keys", "retired_at")
    op.drop_constraint(op.f("uq_members_email_hash"), "members", type_="unique")
    op.drop_column("members", "token_epoch_at")
    op.drop_column("members", "token_epoch")
    op.drop_column("members", "totp_last_step")
    op.drop_column("members", "totp_offered_sealed")
    op.drop_column("members", "totp_sealed")
    op.drop_column("members", "password_hash")
    op.drop_column("members", "email_hash")
    op.drop_column("members", "email_sealed")
    op.drop_column("members", "kind")
    op.drop_column("enrolments", "approval")
    op.drop_column("clients", "token_epoch_at")
    op.drop_column("clients", "token_epoch")
    op.drop_constraint(op.f("fk_api_keys_replaces_api_keys"), "api_keys", type_="foreignkey")
    op.drop_column("api_keys", "last_used_address")
    op.drop_column("api_keys", "replaces")
    op.drop_column("api_keys", "networks")
    op.drop_column("api_keys", "scopes")
    op.drop_index(op.f("ix_refresh_tokens_session_id"), table_name="refresh_tokens")
    op.drop_table("refresh_tokens")
    op.drop_table("recovery_codes")
    op.drop_index(op.f("ix_password_tokens_member_id"), table_name="password_tokens")
    op.drop_table("password_tokens")
    op.drop_index(op.f("ix_oidc_logins_expires_at"), table_name="oidc_logins")
    op.drop_table("oidc_logins")
    op.drop_index(op.f("ix_oidc_identities_member_id"), table_name="oidc_identities")
    op.drop_table("oidc_identities")
    op.drop_index(op.f("ix_member_sessions_member_id"), table_name="member_sessions")
    op.drop_index(op.f("ix_member_sessions_ended_at"), table_name="member_sessions")
    op.drop_table("member_sessions")
    op.drop_index(op.f("ix_former_client_keys_client_id"), table_name="former_client_keys")
    op.drop_table("former_client_keys")
    op.drop_index(op.f("ix_attempts_last_at"), table_name="attempts")
    op.drop_table("attempts")
